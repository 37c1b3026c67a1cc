//! `gabion volume recover`: what is left of segments whose copies are all gone.

use crate::failure::Failure;
use crate::remote::Remote;
use crate::verbs::show;
use gabion_api::v1::{Remains, StrandedSegment};
use gabion_api::view;

/// Segments that are listed.
const LISTED_MAX: usize = 20;

pub fn run(remote: &Remote, name: &str, accept: bool, as_json: bool) -> Result<(), Failure> {
    let stranded = remote.recover(name, accept)?;
    show(as_json, &view::recovered(name, &stranded, accept), || text(name, &stranded, accept));
    Ok(())
}

fn text(name: &str, stranded: &[StrandedSegment], accepted: bool) -> String {
    if stranded.is_empty() {
        return format!("{name}: no segment has lost all its copies");
    }
    let row = |one: &StrandedSegment| {
        let place = one.node.zip(one.disk).map(|(node, disk)| format!("{node}/{disk}"));
        vec![one.segment.to_string(), place.unwrap_or("-".to_owned()), meaning(one.remains())]
    };
    let rows: Vec<Vec<String>> = stranded.iter().take(LISTED_MAX).map(row).collect();
    let mut lines = vec![view::table(&["SEGMENT", "NODE/DISK", "WHAT IS LEFT"], &rows)];
    if stranded.len() > LISTED_MAX {
        lines.push(format!("and {} more", stranded.len() - LISTED_MAX));
    }
    let lost = stranded.iter().filter(|one| one.remains() != Remains::Whole).count();
    lines.push(match (accepted, lost) {
        (true, lost) => format!(
            "{lost} segments of {name} go on with that; what only the others had is LOST, also if they come back"
        ),
        (false, 0) => "nothing is lost, and nothing has to be done".to_owned(),
        (false, _) => format!(
            "nothing was changed: bring back a disk or node that had all; if none ever comes, go on with what is \
             left by `gabion volume recover {name} --accept-loss`"
        ),
    });
    lines.join("\n")
}

fn meaning(remains: Remains) -> String {
    let text = match remains {
        Remains::Whole => "all, in two copies that are made one by themselves",
        Remains::Older => {
            "all as it was when this copy left, or newer where it was being brought up; what was written since is not"
        }
        Remains::Part => "a part; reads of the rest fail until it is written",
        Remains::Nothing => "nothing; reads fail until it is written",
        Remains::Unspecified => "?",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_left_and_what_next() {
        let one = |segment, remains: Remains, disk: Option<u32>| StrandedSegment {
            segment,
            remains: remains.into(),
            node: disk,
            disk,
        };
        let all = [one(0, Remains::Older, Some(2)), one(7, Remains::Nothing, None)];
        let told = text("vm1", &all, false);
        assert!(
            told.contains("2/2") && told.contains("volume recover vm1 --accept-loss"),
            "{told}"
        );
        assert!(text("vm1", &all, true).contains("LOST"));
        assert!(text("vm1", &[one(0, Remains::Whole, None)], false).contains("nothing is lost"));
        let many: Vec<_> = (0..30).map(|at| one(at, Remains::Nothing, None)).collect();
        assert!(text("vm1", &many, false).contains("and 10 more"));
        assert!(text("vm1", &[], false).contains("no segment"));
    }
}
