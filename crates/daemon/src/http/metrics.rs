//! What `/metrics` says, in base units: guests first, then safety, then machinery. `docs/metrics.md` has each of them.

mod families;

use crate::control::ask::Context;
use crate::data::Published;
use gabion_types::{LATENCY_BOUNDS, Latencies};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;

/// In the OpenMetrics text format.
pub(super) fn text(published: &Published, context: Option<&Context>) -> String {
    let mut registry = Registry::with_prefix("gabion");
    registry.register_collector(Box::new(Snapshot(families::all(published, context))));
    let mut text = String::new();
    // A String takes every write.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// One metric: its name, its help, and its values by label.
struct Family {
    name: &'static str,
    help: &'static str,
    values: Values,
}

/// Each with the label's value; the label's name is the first.
enum Values {
    /// Only grows.
    Counter(&'static str, Vec<(String, f64)>),
    Gauge(&'static str, Vec<(String, f64)>),
    /// Units: seconds.
    Histogram(&'static str, Vec<(String, Latencies)>),
}

#[derive(Debug)]
struct Snapshot(Vec<Family>);

impl fmt::Debug for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let Self { name, help, values } = self;
        let kind = match values {
            Values::Counter(..) => MetricType::Counter,
            Values::Gauge(..) => MetricType::Gauge,
            Values::Histogram(..) => MetricType::Histogram,
        };
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        match values {
            Values::Counter(label, values) => values.iter().try_for_each(|(value_of, value)| {
                let labels = [(*label, value_of.as_str())];
                ConstCounter::new(*value).encode(family.encode_family(&labels)?)
            }),
            Values::Gauge(label, values) => values.iter().try_for_each(|(value_of, value)| {
                let labels = [(*label, value_of.as_str())];
                ConstGauge::new(*value).encode(family.encode_family(&labels)?)
            }),
            Values::Histogram(label, values) => values.iter().try_for_each(|(value_of, value)| {
                let labels = [(*label, value_of.as_str())];
                histogram(family.encode_family(&labels)?, value)
            }),
        }
    }
}

fn histogram(mut encoder: MetricEncoder<'_>, took: &Latencies) -> Result<(), fmt::Error> {
    let bound = |bucket: usize| match bucket {
        LATENCY_BOUNDS.. => f64::INFINITY,
        bucket => Latencies::bound(bucket).as_secs_f64(),
    };
    let buckets = took.counts().iter().enumerate();
    let buckets: Vec<(f64, u64)> = buckets.map(|(bucket, count)| (bound(bucket), *count)).collect();
    let sum = took.sum().as_secs_f64();
    encoder.encode_histogram::<[(&str, &str); 0]>(sum, took.count(), &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_types::Duration;

    fn shown(family: Family) -> String {
        let mut registry = Registry::with_prefix("gabion");
        registry.register_collector(Box::new(Snapshot(vec![family])));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn buckets_add_up_and_a_name_cannot_break_a_line() {
        let mut took = Latencies::default();
        took.add(Duration::from_micros(10));
        took.add(Duration::from_micros(20));
        took.add(Duration::from_secs(100));
        let values = Values::Histogram("volume", vec![("a\"\nb".to_owned(), took)]);
        let text = shown(Family { name: "x_seconds", help: "h", values });
        let line = |end: &str| text.lines().any(|line| line.ends_with(end));
        assert!(line("{le=\"0.000016\",volume=\"a\\\"\\nb\"} 1"), "{text}");
        assert!(text.contains("+Inf\"") && text.contains("} 3"), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("gabion_x")));
    }
}
