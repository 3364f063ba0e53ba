//! Progress of a copy: a bar on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use mailtwin_host::clock::Clock;

use crate::output::Output;

/// How often progress is shown.
pub(super) const EVERY: Duration = Duration::from_millis(500);

/// Begins when it is made.
pub(super) struct Progress {
    src: PathBuf,
    clock: Arc<dyn Clock>,
    start: Duration,
    /// Messages in SRC: counted when progress is first shown, never in a run that is over at once.
    bar: OnceLock<(ProgressBar, u64)>,
    on_terminal: bool,
}

impl Progress {
    pub(super) fn new(src: &Path, clock: Arc<dyn Clock>) -> Self {
        let start = clock.monotonic();
        let on_terminal = std::io::stderr().is_terminal();
        Self { src: src.to_owned(), clock, start, bar: OnceLock::new(), on_terminal }
    }

    /// Seconds since the start.
    pub(super) fn seconds(&self) -> f64 {
        self.clock.monotonic().saturating_sub(self.start).as_secs_f64()
    }

    /// Shows how far it is.
    pub(super) fn show(&self, (messages, sent, saved): (u64, u64, u64)) {
        let (bar, total) = self.bar.get_or_init(|| {
            let total = count_messages(&self.src);
            (self.bar(total), total)
        });
        #[expect(clippy::cast_precision_loss, reason = "for humans")]
        let rate = (sent + saved) as f64 / self.seconds().max(0.001);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for humans")]
        let rate = HumanBytes(rate as u64);
        let octets = HumanBytes(sent + saved);
        if self.on_terminal {
            bar.set_position(messages);
            bar.set_message(format!("{octets}, {rate}/s"));
        } else {
            let left = self.left(messages, *total);
            Output::note(&format!("{messages} of {total} messages, {octets}, {rate}/s, {left}"));
        }
    }

    /// How long the rest will take at the pace so far.
    fn left(&self, messages: u64, total: u64) -> String {
        #[expect(clippy::cast_precision_loss, reason = "for humans")]
        let (done, rest) = (messages as f64, total.saturating_sub(messages) as f64);
        if done < 1.0 {
            return "no message is across yet".to_owned();
        }
        format!("{:.0} s left", rest * self.seconds() / done)
    }

    /// Takes the bar away.
    pub(super) fn finish(&self, totals: (u64, u64, u64)) {
        if self.bar.get().is_some() {
            self.show(totals);
        }
        if let Some((bar, _)) = self.bar.get() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self, total: u64) -> ProgressBar {
        if !self.on_terminal {
            return ProgressBar::hidden();
        }
        let style = "{bar:30} {pos}/{len} messages  {msg}  {eta} left";
        let style = ProgressStyle::with_template(style).expect("the template is well-formed");
        ProgressBar::new(total).with_style(style)
    }
}

/// Files in every `cur` and `new` below `dir`; what cannot be read counts as none.
fn count_messages(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let mut count = 0;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name();
            count += if name == "cur" || name == "new" {
                std::fs::read_dir(entry.path()).map_or(0, |files| files.count() as u64)
            } else {
                count_messages(&entry.path())
            };
        }
    }
    count
}
