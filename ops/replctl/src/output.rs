//! The only printer: results go to stdout, as text or as one JSON object; talk goes to stderr.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Table, presets};
use mailtwin_host::{keys::PublicKey, node::Role};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Form;

/// Version of the JSON: it only ever gains fields.
const SCHEMA_VERSION: u32 = 1;

/// Where results go.
pub(crate) struct Output {
    form: Form,
}

/// What `mirror --once` has to say.
#[derive(Debug, Serialize)]
pub(crate) struct MirrorReport {
    /// Messages copied.
    pub(crate) messages: u64,
    /// Their octets.
    pub(crate) octets: u64,
    /// Octets read and written; the others were linked from copies that were there.
    pub(crate) octets_sent: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// What differs, and why.
    pub(crate) set_aside: Vec<(String, String)>,
    /// What is wrong in SRC.
    pub(crate) problems: Vec<(String, String)>,
}

impl Output {
    pub(crate) fn new(form: Form) -> Self {
        Self { form }
    }

    /// Whether the result is JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// One line of what is going on.
    pub(crate) fn say(&self, text: &str) -> io::Result<()> {
        match self.form {
            Form::Text => {
                println!("{text}");
                io::stdout().flush()
            }
            Form::Json => {
                eprintln!("{text}");
                Ok(())
            }
        }
    }

    /// Begins a screen anew, if this is one.
    pub(crate) fn clear() -> io::Result<()> {
        if io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        } else {
            println!();
        }
        io::stdout().flush()
    }

    /// Talk beside the result.
    pub(crate) fn note(text: &str) {
        eprintln!("{text}");
    }

    /// An error, with its causes.
    pub(crate) fn error(error: &anyhow::Error) {
        eprintln!("replctl: {error:#}");
    }

    /// A table with a head.
    pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(head);
        for row in rows {
            table.add_row(row);
        }
        for line in table.lines() {
            println!("{}", line.trim_end());
        }
        io::stdout().flush()
    }

    /// One JSON object, with the version of its shape.
    pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
        let mut value = serde_json::to_value(value)?;
        if let Value::Object(fields) = &mut value {
            fields.entry("schema_version").or_insert_with(|| json!(SCHEMA_VERSION));
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
        Ok(io::stdout().flush()?)
    }

    pub(crate) fn init(&self, node: &str, role: Role, key: &PublicKey) -> anyhow::Result<()> {
        if self.is_json() {
            let fingerprint = key.fingerprint();
            return Self::json(&json!({
                "node": node, "role": role, "key": key, "fingerprint": fingerprint,
            }));
        }
        self.say(&format!("{node} is a {role} now, in epoch 1."))?;
        self.say(&format!("key          {key}"))?;
        self.say(&format!("fingerprint  {}", key.fingerprint()))?;
        Ok(())
    }

    pub(crate) fn mirror(&self, report: &MirrorReport) -> anyhow::Result<()> {
        if self.is_json() {
            return Self::json(report);
        }
        for (object, detail) in &report.problems {
            self.say(&format!("problem: {object}: {detail}"))?;
        }
        for (object, detail) in &report.set_aside {
            self.say(&format!("differs: {object}: {detail}"))?;
        }
        let MirrorReport { messages, octets, seconds, .. } = report;
        let octets = indicatif::HumanBytes(*octets);
        let end = if report.set_aside.is_empty() { "equal" } else { "NOT equal" };
        Ok(self.say(&format!("{messages} messages copied ({octets}) in {seconds:.2} s: {end}"))?)
    }

    pub(crate) fn follow(&self, messages: u64, octets: u64, lag_ms: u64) -> io::Result<()> {
        let octets = indicatif::HumanBytes(octets);
        #[expect(clippy::cast_precision_loss, reason = "for humans")]
        let lag = lag_ms as f64 / 1000.0;
        self.say(&format!("{messages} messages copied ({octets}), lag {lag:.1} s"))
    }
}

/// A moment in milliseconds since 1970, as people write it.
pub(crate) fn when(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "?".to_owned(), |at| at.strftime("%F %T%.3fZ").to_string())
}
