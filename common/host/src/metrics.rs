//! Metrics as text, from a registry that belongs to the daemon and to nobody else.

use std::fmt::Write as _;

use prometheus::{Encoder as _, IntGaugeVec, Opts, Registry, TextEncoder};

/// Everything in `registry` and the usual process metrics, in Prometheus' text format.
pub(crate) fn text(registry: &Registry) -> Vec<u8> {
    let mut text = process();
    // Metrics of our own making always encode.
    let _ = TextEncoder::new().encode(&registry.gather(), &mut text);
    text
}

/// The usual process metrics, read from `/proc/self` at each scrape.
fn process() -> Vec<u8> {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    #[expect(clippy::cast_precision_loss, reason = "clock ticks and pages are small numbers")]
    let (tick, page) =
        (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as f64);
    if let (Some(user), Some(system)) = (number(12), number(13)) {
        let help = "Time of processors, its own and the kernel's for it";
        metric("process_cpu_seconds_total", "counter", help, (user + system) / tick);
    }
    if let Some(pages) = number(22) {
        metric("process_resident_memory_bytes", "gauge", "Resident memory", pages * page);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let open = f64::from(u32::try_from(open.count()).unwrap_or(0));
        metric("process_open_fds", "gauge", "Open file descriptors", open);
    }
    text.into_bytes()
}

/// Registers `mailtwin_build_info`, always 1, with the version as its label.
pub fn build_info(registry: &Registry, daemon: &str) -> Result<(), prometheus::Error> {
    let opts = Opts::new("mailtwin_build_info", "1, with the version as a label");
    let info = IntGaugeVec::new(opts, &["daemon", "version"])?;
    registry.register(Box::new(info.clone()))?;
    info.with_label_values(&[daemon, env!("CARGO_PKG_VERSION")]).set(1);
    Ok(())
}
