//! The lag of the last hour, in memory: one sample every so often, the oldest go.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

/// Time between two samples, in seconds.
pub(super) const STEP_SECONDS: u64 = 10;
/// Samples that are kept: an hour.
const SAMPLES_MAX: usize = 360;
/// Replicas that are remembered of one sample.
const SERIES_MAX: usize = 32;

/// What was measured at one moment.
struct Sample {
    at: u64,
    lags: Vec<(String, f64)>,
}

/// The last hour.
#[derive(Default)]
pub(super) struct Lags(VecDeque<Sample>);

/// One replica's line.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Series {
    /// Its name.
    pub(super) name: String,
    /// How many seconds ago, and its lag in seconds then; the oldest first.
    pub(super) points: Vec<(u64, f64)>,
}

impl Lags {
    /// Adds what was measured at `now`, in milliseconds since 1970.
    pub(super) fn add(&mut self, now: u64, mut lags: Vec<(String, f64)>) {
        lags.truncate(SERIES_MAX);
        self.0.push_back(Sample { at: now, lags });
        if self.0.len() > SAMPLES_MAX {
            self.0.pop_front();
        }
    }

    /// All of it, as seen at `now`.
    pub(super) fn series(&self, now: u64) -> Vec<Series> {
        let mut all: BTreeMap<&str, Vec<(u64, f64)>> = BTreeMap::new();
        for Sample { at, lags } in &self.0 {
            for (name, lag) in lags {
                let ago = now.saturating_sub(*at) / 1_000;
                all.entry(name).or_default().push((ago, *lag));
            }
        }
        let one = |(name, points): (&str, _)| Series { name: name.to_owned(), points };
        all.into_iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut lags = Lags::default();
        for n in 0..1_000 {
            let two = n >= 999;
            let mut sample = vec![("mx2".to_owned(), 0.5)];
            sample.extend(two.then(|| ("mx3".to_owned(), 7.0)));
            lags.add(n * 10_000, sample);
        }
        let series = lags.series(999 * 10_000);
        assert_eq!(series.len(), 2);
        assert_eq!((series[0].points.len(), series[0].points[0]), (360, (3_590, 0.5)));
        assert_eq!(series[1], Series { name: "mx3".into(), points: vec![(0, 7.0)] });
        lags.add(1, (0..100).map(|n| (n.to_string(), 0.0)).collect());
        assert!(lags.series(1).len() <= 2 + SERIES_MAX);
    }
}
