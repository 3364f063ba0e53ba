//! Every metric of the replica daemon. No account or mailbox is ever a label.

use mailtwin_host::node::Role;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Handles, cloned into tasks.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Time from a group of batches to its ack, disk included.
    pub apply_seconds: Histogram,
    applied_messages: IntCounter,
    applied_octets: IntCounter,
    heartbeat: Gauge,
    complete: Gauge,
    role: IntGaugeVec,
    /// The epoch this node knows.
    pub epoch: IntGauge,
    /// Refused connections.
    pub refused: IntCounter,
}

impl Metrics {
    /// Registers every metric once.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = prometheus::exponential_buckets(0.001, 2.0, 14)?;
        let apply = HistogramOpts::new(
            "mailtwin_apply_seconds",
            "Time from a group of changes to its ack, disk included",
        );
        let metrics = Self {
            apply_seconds: Histogram::with_opts(apply.buckets(buckets))?,
            applied_messages: IntCounter::new(
                "mailtwin_applied_messages_total",
                "Messages taken in, durably",
            )?,
            applied_octets: IntCounter::new(
                "mailtwin_applied_octets_total",
                "Octets of messages taken in, durably",
            )?,
            heartbeat: Gauge::new(
                "mailtwin_master_heartbeat_timestamp_seconds",
                "When the master's agent last said that it is there, by its own clock",
            )?,
            complete: Gauge::new(
                "mailtwin_complete_timestamp_seconds",
                "Everything that the master had noticed by then is here, by this node's clock; 0 until \
                 it is known",
            )?,
            role: IntGaugeVec::new(
                Opts::new("mailtwin_role", "1 for the role this node has"),
                &["role"],
            )?,
            epoch: IntGauge::new("mailtwin_epoch", "Highest epoch this node knows")?,
            refused: IntCounter::new(
                "mailtwin_refused_connections_total",
                "Connections that were refused or broke the protocol",
            )?,
        };
        registry.register(Box::new(metrics.apply_seconds.clone()))?;
        registry.register(Box::new(metrics.applied_messages.clone()))?;
        registry.register(Box::new(metrics.applied_octets.clone()))?;
        registry.register(Box::new(metrics.heartbeat.clone()))?;
        registry.register(Box::new(metrics.complete.clone()))?;
        registry.register(Box::new(metrics.role.clone()))?;
        registry.register(Box::new(metrics.epoch.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn publish_role(&self, role: Role) {
        for each in [Role::Master, Role::Replica] {
            self.role.with_label_values(&[each.to_string()]).set((each == role).into());
        }
    }

    pub(crate) fn count_applied(&self, messages: usize, octets: u64) {
        self.applied_messages.inc_by(messages as u64);
        self.applied_octets.inc_by(octets);
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double")]
    pub(crate) fn heartbeat(&self, at_ms: u64) {
        self.heartbeat.set(at_ms as f64 / 1000.0);
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double")]
    pub(crate) fn complete_to(&self, at_ms: u64) {
        self.complete.set(at_ms as f64 / 1000.0);
    }
}
