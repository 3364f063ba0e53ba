//! Every metric of the agent. No account or mailbox is ever a label.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use mailtwin_logic::{cursor::Claim, quarantine::Reason};
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, exponential_buckets,
};

use crate::link::LinkStatus;

/// Handles, cloned into tasks.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 for the role this node has, 0 for the other.
    pub role: IntGaugeVec,
    /// The epoch.
    pub epoch: IntGauge,
    /// End of the log.
    pub log_head: IntGauge,
    /// Size of the log.
    pub log_bytes: IntGauge,
    /// Appends that failed.
    pub log_append_errors: IntCounter,
    /// Time of one durable append.
    pub sync_seconds: Histogram,
    /// Times the watcher lost events and everything was looked at instead.
    pub watch_overflows: IntCounter,
    connected: IntGaugeVec,
    cursor: IntGaugeVec,
    lag_seconds: IntGaugeVec,
    lag_entries: IntGaugeVec,
    messages: IntCounterVec,
    octets_sent: IntCounterVec,
    octets_saved: IntCounterVec,
    delivery: HistogramVec,
    quarantined: IntGaugeVec,
    brake: IntGaugeVec,
    standing: Standing,
    /// What checks found.
    pub check: CheckMetrics,
    /// What became of canaries.
    pub canary: CanaryMetrics,
}

/// Where replicas stand, beside their lag.
#[derive(Clone, Debug)]
struct Standing {
    claim: IntGaugeVec,
    copy_left: IntGaugeVec,
    key_refused: IntGaugeVec,
}

impl Standing {
    fn register(r: &Registrar<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            claim: r.gauges(
                "mailtwin_replica_claim",
                "1 for the state of the replica's place in the sync log",
                &["replica", "state"],
            )?,
            copy_left: r.per_replica(
                "mailtwin_replica_copy_left_messages",
                "Messages that a copy of everything has still to bring, as far as they are counted",
            )?,
            key_refused: r.per_replica(
                "mailtwin_replica_key_refused",
                "1 while the replica shows another key than is pinned, or refuses this node's",
            )?,
        })
    }
}

/// What checks found.
#[derive(Clone, Debug)]
pub struct CheckMetrics {
    /// Differences that the last check of everything found, by its level.
    pub differences: IntGaugeVec,
    /// When the last check of everything that could be compared began, in seconds since 1970.
    pub last: IntGaugeVec,
    /// When the message that was not read for longest was read, in seconds since 1970; 0 for never.
    pub oldest_verified: IntGauge,
}

impl CheckMetrics {
    fn register(r: &Registrar<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            differences: r.gauges(
                "mailtwin_check_differences",
                "Differences that the last check of everything found",
                &["level"],
            )?,
            last: r.gauges(
                "mailtwin_check_last_timestamp_seconds",
                "When the last check of everything began",
                &["replica", "level"],
            )?,
            oldest_verified: r.gauge(
                "mailtwin_check_oldest_verified_timestamp_seconds",
                "When the message that was not read for longest was read on both sides; 0 for never",
            )?,
        })
    }
}

/// What became of canaries.
#[derive(Clone, Debug)]
pub struct CanaryMetrics {
    interval: IntGauge,
    seconds: GaugeVec,
    arrived: IntGaugeVec,
    shown: Arc<Mutex<BTreeSet<String>>>,
}

impl CanaryMetrics {
    fn register(r: &Registrar<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            interval: r.gauge(
                "mailtwin_canary_interval_seconds",
                "Time between two canaries; 0: none is sent by itself",
            )?,
            seconds: r.add(GaugeVec::new(
                Opts::new(
                    "mailtwin_canary_seconds",
                    "Time from the last canary that arrived being accepted to its being found on the replica",
                ),
                &["replica"],
            )?)?,
            arrived: r.per_replica(
                "mailtwin_canary_arrived_timestamp_seconds",
                "When a canary was last found on the replica; before the first, when the agent began to send them",
            )?,
            shown: Arc::default(),
        })
    }

    /// Sends begin, this far from each other.
    pub(crate) fn begin(&self, interval: Duration) {
        self.interval.set(i64::try_from(interval.as_secs()).unwrap_or(i64::MAX));
    }

    /// One is sent, to these replicas and no others.
    pub(crate) fn sent(&self, to: BTreeSet<String>, now_ms: u64) {
        let mut shown = self.shown.lock().expect("no panic while it is held");
        for name in shown.difference(&to) {
            // It never arrived there, or is shown no more.
            let _ = self.seconds.remove_label_values(&[name]);
            let _ = self.arrived.remove_label_values(&[name]);
        }
        for name in to.difference(&shown) {
            self.arrived.with_label_values(&[name]).set(seconds(now_ms));
        }
        *shown = to;
    }

    /// One was found on `replica`.
    pub(crate) fn arrived(&self, replica: &str, after: Duration, now_ms: u64) {
        self.seconds.with_label_values(&[replica]).set(after.as_secs_f64());
        self.arrived.with_label_values(&[replica]).set(seconds(now_ms));
    }
}

fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Registers every metric once.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let r = Registrar(registry);
        Ok(Self {
            role: r.gauges("mailtwin_role", "1 for the role this node has", &["role"])?,
            epoch: r.gauge("mailtwin_epoch", "Highest epoch this node knows")?,
            log_head: r.gauge("mailtwin_log_head_seq", "Sequence number of the newest entry")?,
            log_bytes: r.gauge("mailtwin_log_bytes", "Octets of all segments of the sync log")?,
            log_append_errors: r.counter(
                "mailtwin_log_append_errors_total",
                "Appends to the sync log that failed",
            )?,
            sync_seconds: r.histogram(
                "mailtwin_sync_seconds",
                "Time to make one group of log entries durable",
                exponential_buckets(0.000_25, 2.0, 14)?,
            )?,
            watch_overflows: r.counter(
                "mailtwin_watch_overflows_total",
                "Times change events were lost and everything was looked at instead",
            )?,
            connected: r.gauges(
                "mailtwin_replica_connected",
                "1 while the replica is connected",
                &["replica"],
            )?,
            cursor: r.gauges(
                "mailtwin_replica_cursor_seq",
                "Everything up to here is on the replica, or set aside",
                &["replica"],
            )?,
            lag_seconds: r.gauges(
                "mailtwin_replica_lag_seconds",
                "Age of the oldest entry the replica lacks",
                &["replica"],
            )?,
            lag_entries: r.gauges(
                "mailtwin_replica_lag_entries",
                "Entries the replica lacks",
                &["replica"],
            )?,
            messages: r.counters(
                "mailtwin_messages_replicated_total",
                "Messages acked by the replica",
                &["replica"],
            )?,
            octets_sent: r.counters(
                "mailtwin_octets_sent_total",
                "Octets of messages sent",
                &["replica"],
            )?,
            octets_saved: r.counters(
                "mailtwin_octets_saved_total",
                "Octets of messages the replica had already",
                &["replica"],
            )?,
            delivery: r.histograms(
                "mailtwin_delivery_to_replica_seconds",
                "Time from a change being logged to its ack",
                exponential_buckets(0.001, 2.0, 16)?,
                &["replica"],
            )?,
            quarantined: r.gauges(
                "mailtwin_quarantined_mailboxes",
                "Mailboxes and accounts set aside",
                &["replica", "reason"],
            )?,
            brake: r.per_replica("mailtwin_brake_engaged", "1 while deletions are held")?,
            standing: Standing::register(&r)?,
            check: CheckMetrics::register(&r)?,
            canary: CanaryMetrics::register(&r)?,
        })
    }

    /// The metrics of one replica.
    pub fn link(&self, replica: &str) -> LinkMetrics {
        let one = [replica];
        LinkMetrics {
            connected: self.connected.with_label_values(&one),
            cursor: self.cursor.with_label_values(&one),
            lag_seconds: self.lag_seconds.with_label_values(&one),
            lag_entries: self.lag_entries.with_label_values(&one),
            messages: self.messages.with_label_values(&one),
            octets_sent: self.octets_sent.with_label_values(&one),
            octets_saved: self.octets_saved.with_label_values(&one),
            delivery: self.delivery.with_label_values(&one),
            quarantined: self.quarantined.clone(),
            brake: self.brake.with_label_values(&one),
            claim: Claim::ALL
                .map(|claim| self.standing.claim.with_label_values(&[replica, claim.as_str()])),
            copy_left: self.standing.copy_left.with_label_values(&one),
            key_refused: self.standing.key_refused.with_label_values(&one),
            reasons: Arc::default(),
            replica: replica.to_owned(),
        }
    }
}

impl Metrics {
    /// Takes a replica's values out: it is none any more.
    pub(crate) fn forget(&self, link: &LinkMetrics) {
        let one = [link.replica.as_str()];
        // What was never shown need not go.
        for gauges in [
            &self.connected,
            &self.cursor,
            &self.lag_seconds,
            &self.lag_entries,
            &self.brake,
            &self.standing.copy_left,
            &self.standing.key_refused,
        ] {
            let _ = gauges.remove_label_values(&one);
        }
        for counters in [&self.messages, &self.octets_sent, &self.octets_saved] {
            let _ = counters.remove_label_values(&one);
        }
        let _ = self.delivery.remove_label_values(&one);
        for claim in Claim::ALL {
            let _ = self.standing.claim.remove_label_values(&[one[0], claim.as_str()]);
        }
        for reason in link.reasons.lock().expect("no panic while it is held").iter() {
            let _ = self.quarantined.remove_label_values(&[link.replica.as_str(), reason.as_str()]);
        }
    }
}

/// One replica's metrics.
#[derive(Clone, Debug)]
pub struct LinkMetrics {
    connected: IntGauge,
    cursor: IntGauge,
    lag_seconds: IntGauge,
    lag_entries: IntGauge,
    messages: IntCounter,
    octets_sent: IntCounter,
    octets_saved: IntCounter,
    /// Time from log entry to ack.
    pub delivery: Histogram,
    quarantined: IntGaugeVec,
    brake: IntGauge,
    claim: [IntGauge; Claim::ALL.len()],
    copy_left: IntGauge,
    key_refused: IntGauge,
    /// Reasons that were shown once: they fall to 0, they do not go stale.
    reasons: Arc<Mutex<BTreeSet<Reason>>>,
    replica: String,
}

impl LinkMetrics {
    /// Octets of a message are on their way.
    pub(crate) fn count_sent(&self, octets: u64) {
        self.octets_sent.inc_by(octets);
    }

    /// Messages were acked, so many of their octets without having been sent.
    pub(crate) fn count_acked(&self, messages: u64, saved: u64) {
        self.messages.inc_by(messages);
        self.octets_saved.inc_by(saved);
    }

    /// Messages and octets acked so far, and octets that did not need to be sent.
    pub fn totals(&self) -> (u64, u64, u64) {
        (self.messages.get(), self.octets_sent.get(), self.octets_saved.get())
    }

    /// How many targets are set aside, by reason.
    pub(crate) fn set_quarantined(&self, reasons: &BTreeMap<Reason, usize>) {
        let mut shown = self.reasons.lock().expect("no panic while it is held");
        shown.extend(reasons.keys());
        for reason in shown.iter() {
            let count = reasons.get(reason).copied().unwrap_or_default();
            let labels = [self.replica.as_str(), reason.as_str()];
            let gauge = self.quarantined.with_label_values(&labels);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn publish(&self, status: &LinkStatus, now: u64) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.connected.set(status.connected.into());
        self.brake.set((!status.brake.is_empty()).into());
        for (gauge, claim) in self.claim.iter().zip(Claim::ALL) {
            gauge.set((status.claim == claim).into());
        }
        self.key_refused.set(status.key_trouble.is_some().into());
        self.copy_left.set(number(status.copy.map_or(0, |copy| copy.left())));
        self.cursor.set(number(status.cursor.0));
        self.lag_entries.set(number(status.lag_entries));
        self.lag_seconds.set(number(status.lag_ms(now) / 1000));
    }
}

/// Makes and registers in one step.
struct Registrar<'a>(&'a Registry);

type Made<T> = Result<T, prometheus::Error>;

impl Registrar<'_> {
    fn add<T: prometheus::core::Collector + Clone + 'static>(&self, metric: T) -> Made<T> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Made<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Made<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn per_replica(&self, name: &str, help: &str) -> Made<IntGaugeVec> {
        self.gauges(name, help, &["replica"])
    }

    fn counter(&self, name: &str, help: &str) -> Made<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Made<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Made<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: Vec<f64>,
        labels: &[&str],
    ) -> Made<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(buckets);
        self.add(HistogramVec::new(opts, labels)?)
    }
}
