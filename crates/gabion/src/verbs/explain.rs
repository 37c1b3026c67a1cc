//! `gabion volume explain`.

use crate::failure::Failure;
use crate::remote::Remote;
use crate::size::ByteSize;
use crate::verbs::{show, status};
use gabion_api::{v1, view};

/// Copies under way that are listed; there are never many at once, but many may wait.
const LISTED_MAX: usize = 20;

pub fn run(remote: &Remote, name: &str, as_json: bool) -> Result<(), Failure> {
    let found = remote.explain(name)?;
    show(as_json, &view::explained(&found), || text(&found));
    Ok(())
}

fn text(found: &v1::ExplainVolumeResponse) -> String {
    let mut lines = Vec::new();
    if let Some(volume) = &found.volume {
        lines.push(format!(
            "{}: {}, {} copies, {}",
            volume.name,
            ByteSize(volume.size_bytes),
            volume.rf,
            view::health(volume.health)
        ));
        lines.extend(volume.reasons.iter().map(|reason| format!("  - {reason}")));
        let rebuild = status::rebuild(volume);
        lines.push(if rebuild.is_empty() {
            "nothing is being copied".to_owned()
        } else {
            format!("being copied: {rebuild}")
        });
    }
    lines.extend(copying(&found.copying));
    lines.extend(found.safety.iter().flat_map(status::safety_lines));
    lines.join("\n")
}

/// Those that move first.
fn copying(all: &[v1::Copying]) -> Vec<String> {
    if all.is_empty() {
        return Vec::new();
    }
    let mut sorted: Vec<&v1::Copying> = all.iter().collect();
    sorted.sort_by_key(|copying| (copying.waiting, copying.segment));
    let place = |node: u32, disk: u32| format!("{node}/{disk}");
    let row = |copying: &&v1::Copying| {
        let from = copying.from_node.zip(copying.from_disk);
        let percent = copying.copied_bytes.saturating_mul(100) / copying.total_bytes.max(1);
        vec![
            copying.segment.to_string(),
            from.map_or("-".to_owned(), |(node, disk)| place(node, disk)),
            place(copying.to_node, copying.to_disk),
            if copying.waiting { "waits".to_owned() } else { format!("{percent} %") },
        ]
    };
    let rows: Vec<Vec<String>> = sorted.iter().take(LISTED_MAX).map(row).collect();
    let mut lines = vec![view::table(&["SEGMENT", "FROM (NODE/DISK)", "TO", "COPIED"], &rows)];
    if sorted.len() > LISTED_MAX {
        lines.push(format!("and {} more", sorted.len() - LISTED_MAX));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_comes_first_and_many_are_not_listed() {
        let copying_of = |segment, waiting| v1::Copying {
            segment,
            waiting,
            to_node: 3,
            to_disk: 3,
            total_bytes: 100,
            copied_bytes: 40,
            ..v1::Copying::default()
        };
        let mut all: Vec<v1::Copying> = (0..30).map(|segment| copying_of(segment, true)).collect();
        all.push(v1::Copying { from_node: Some(1), from_disk: Some(2), ..copying_of(77, false) });
        let lines = copying(&all);
        let rows: Vec<&str> = lines[0].lines().collect();
        assert_eq!(rows[1].split_whitespace().collect::<Vec<_>>(), ["77", "1/2", "3/3", "40", "%"]);
        assert_eq!(rows.len(), 1 + LISTED_MAX);
        assert_eq!(lines[1], "and 11 more");
        assert!(copying(&[]).is_empty());
    }
}
