//! `replctl check`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[expect(clippy::struct_excessive_bools, reason = "each is a word of a command line")]
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    group(clap::ArgGroup::new("given").args(["to", "dry_run"]).multiple(true))
)]
pub(crate) struct Check {
    #[command(subcommand)]
    pub(crate) verb: Option<CheckVerb>,
    /// Accounts or mailboxes; everything if absent.
    #[arg(value_name = "ACCOUNT[/MAILBOX]")]
    pub(crate) targets: Vec<String>,
    /// Compare with this replica only.
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// How closely to look.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) level: Level,
    /// Read only so many percent of the messages, others each time (level deep).
    #[arg(long, value_name = "PERCENT", value_parser = thousandths)]
    pub(crate) sample: Option<u16>,
    /// Read at most so much per second on each side (level deep).
    #[arg(long, value_name = "SIZE", value_parser = mailtwin_host::config::parse_size)]
    pub(crate) rate: Option<u64>,
    /// How long changes under way may take to settle.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1m",
        value_parser = mailtwin_host::config::parse_duration
    )]
    pub(crate) settle: std::time::Duration,
    /// One line and an exit code for Nagios and its like (0 equal, 1 repairable, 2 not, 3 unknown).
    #[arg(long)]
    pub(crate) nagios: bool,
    /// Write what would be repaired, and how, to FILE, to be read, edited and applied.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["apply", "repair", "nagios"])]
    pub(crate) plan: Option<PathBuf>,
    /// Repair what FILE says, then compare again.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["repair", "nagios"])]
    pub(crate) apply: Option<PathBuf>,
    /// Repair what can be decided without a human, then compare again.
    #[arg(long, conflicts_with = "nagios")]
    pub(crate) repair: bool,
    /// Write what repair ID replaced or took away into files, and hand them to a command if there is
    /// one.
    #[arg(
        long,
        value_name = "ID",
        requires = "given",
        conflicts_with_all = ["targets", "replica", "apply", "repair", "plan", "nagios"]
    )]
    pub(crate) undo: Option<u64>,
    /// Where the files of --undo go; the agent's user must be allowed to write there.
    #[arg(long, value_name = "DIR", requires = "undo")]
    pub(crate) to: Option<PathBuf>,
    /// Run by the shell for each message of --undo, which it finds as its input;
    /// `$MAILTWIN_ACCOUNT` and `$MAILTWIN_MAILBOX` say where it was. For example:
    /// `doveadm save -u "$MAILTWIN_ACCOUNT" -m "$MAILTWIN_MAILBOX"`
    #[arg(long, value_name = "COMMAND", requires = "to")]
    pub(crate) deliver: Option<String>,
    /// Look at this node by itself, master or replica: whether index, list of UIDs and files agree.
    #[arg(long, conflicts_with_all = ["replica", "sample", "rate", "apply", "repair", "plan", "undo"])]
    pub(crate) local: bool,
    /// Also compare with what the mail server says: how its `doveadm` is run, by the shell. It opens
    /// every mailbox.
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "local",
        num_args = 0..=1,
        default_missing_value = "doveadm"
    )]
    pub(crate) doveadm: Option<String>,
    /// Only say what --undo would bring back.
    #[arg(long, requires = "undo")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckVerb {
    /// Say what a signed report says, if it is as it was signed, and by whom.
    VerifyReport {
        /// As a check left it in `reports/` of the agent's state directory.
        file: PathBuf,
    },
}

/// How closely two nodes are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// One digest for each mailbox.
    Quick,
    /// Every record, and every file's size and date.
    #[default]
    Full,
    /// Every octet.
    Deep,
}

/// `5%` or `0.5`, as thousandths.
fn thousandths(text: &str) -> Result<u16, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "no percentage".to_owned())?;
    if !(number > 0.0 && number <= 100.0) {
        return Err("between 0.1% and 100%".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 1000")]
    let thousandths = (number * 10.0).ceil() as u16;
    Ok(thousandths)
}
