//! The canary in answers.

use serde::{Deserialize, Serialize};

/// What became of one canary: a message that the agent had delivered to see it arrive everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryReport {
    /// When it was sent, in milliseconds since 1970.
    pub at: u64,
    /// Whom it was sent to.
    pub account: String,
    /// Milliseconds until the mail server had accepted it; absent if it did not.
    pub accepted_ms: Option<u64>,
    /// Why it got no further than the master.
    pub error: Option<String>,
    /// Every replica that is not paused, by name.
    pub replicas: Vec<CanaryArrival>,
}

/// Where a canary arrived, or did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryArrival {
    /// The replica.
    pub name: String,
    /// Milliseconds from its being accepted to its being found there; absent if it was not.
    pub after_ms: Option<u64>,
    /// Why not.
    pub error: Option<String>,
}

impl CanaryReport {
    /// Whether it arrived everywhere.
    pub fn is_well(&self) -> bool {
        self.error.is_none() && self.replicas.iter().all(|replica| replica.after_ms.is_some())
    }

    /// Who has it after what time, or why not, in one line.
    pub fn summary(&self) -> String {
        if let Some(error) = &self.error {
            return error.clone();
        }
        let one = |arrival: &CanaryArrival| match (arrival.after_ms, &arrival.error) {
            (Some(ms), _) => format!("on {} after {ms} ms", arrival.name),
            (None, Some(error)) => format!("not on {}: {error}", arrival.name),
            (None, None) => format!("not on {}", arrival.name),
        };
        let told: Vec<String> = self.replicas.iter().map(one).collect();
        if told.is_empty() { "there is no replica".to_owned() } else { told.join("; ") }
    }
}
