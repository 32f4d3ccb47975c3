//! Counters as Prometheus reads them. Pure.

use std::fmt::Write;

use crate::clouds::api::Tally;
use crate::engine::Metrics;
use crate::service::{Counts, Stage};

/// The page, in the text format 0.0.4.
pub(crate) fn page(engine: &Metrics, counts: &Counts, tally: &Tally, connections: u64) -> String {
    let mut out = String::new();
    let mut family = Family(&mut out);
    family.head("blockferry_copies", "gauge", "Copies that are remembered, by where they stand.");
    for (stage, count) in Stage::ALL.iter().zip(counts.copies) {
        family.line(&[("stage", stage.name())], count);
    }
    family.head("blockferry_region_copies", "gauge", "Copies to a region that wait or run.");
    for (region, waiting, running, _) in &counts.regions {
        family.line(&[("region", region.as_str()), ("state", "waiting")], to_u64(*waiting));
        family.line(&[("region", region.as_str()), ("state", "running")], to_u64(*running));
    }
    family.head("blockferry_region_images", "gauge", "Images of a region.");
    for (region, _, _, images) in &counts.regions {
        family.line(&[("region", region.as_str())], to_u64(*images));
    }
    family.head("blockferry_events_total", "counter", "Events told since the start.");
    family.line(&[], counts.events);
    family.head("blockferry_read_bytes_total", "counter", "Bytes read from a region.");
    for (region, told) in &engine.regions {
        family.line(&[("region", region.as_str())], told.read_bytes);
    }
    family.head("blockferry_written_bytes_total", "counter", "Data bytes written to a region.");
    for (region, told) in &engine.regions {
        family.line(&[("region", region.as_str())], told.written_bytes);
    }
    family.head("blockferry_jobs_ended_total", "counter", "Jobs to a region, by how they ended.");
    for (region, told) in &engine.regions {
        for (end, count) in [
            ("committed", told.committed),
            ("rolled_back", told.rolled_back),
            ("failed", told.failed),
        ] {
            family.line(&[("region", region.as_str()), ("end", end)], count);
        }
    }
    family.head("blockferry_requests_total", "counter", "Answers, by cloud, call and error code.");
    for ((cloud, call, code), count) in tally {
        family.line(&[("cloud", cloud), ("call", call), ("code", code)], *count);
    }
    family.head("blockferry_connections", "gauge", "Open connections.");
    family.line(&[], connections);
    out
}

struct Family<'a>(&'a mut String);

impl Family<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // The name is told again with each line: see `line`.
        self.0.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, labels: &[(&str, &str)], value: u64) {
        let head = self.0.rsplit("# TYPE ").next().unwrap_or_default();
        let name = head.split(' ').next().unwrap_or_default().to_owned();
        let told: Vec<_> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        let labels =
            if told.is_empty() { String::new() } else { format!("{{{}}}", told.join(",")) };
        // Writing to text cannot fail.
        writeln!(self.0, "{name}{labels} {value}").ok();
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn to_u64(count: usize) -> u64 {
    crate::geometry::to_u64(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_of_the_family_before_it_and_labels_are_escaped() {
        let mut counts = Counts::default();
        counts.regions.push(("a\"\\b".parse().unwrap(), 1, 2, 3));
        let tally = Tally::from([(("alibaba", "CopyImage", ""), 7)]);
        let page = page(&Metrics::default(), &counts, &tally, 4);
        let mut family = "";
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap(),
                None if line.starts_with('#') => {}
                None => {
                    assert_eq!(line.split(['{', ' ']).next().unwrap(), family, "{line}");
                    line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
                }
            }
        }
        assert!(page.contains(r#"blockferry_region_images{region="a\"\\b"} 3"#), "{page}");
        let wanted = r#"blockferry_requests_total{cloud="alibaba",call="CopyImage",code=""} 7"#;
        assert!(page.contains(wanted), "{page}");
        assert!(page.ends_with("blockferry_connections 4\n"));
    }
}
