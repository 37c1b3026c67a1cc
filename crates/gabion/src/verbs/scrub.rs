//! `gabion volume scrub`, and what the last ones found.

use crate::bar::Bar;
use crate::failure::Failure;
use crate::remote::Remote;
use crate::verbs::show;
use gabion_api::v1;
use gabion_api::view;
use serde_json::json;
use std::time::{Duration, SystemTime};

const LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn run(
    remote: &Remote,
    name: &str,
    deep: bool,
    wait: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let number = remote.scrub(name, deep)?;
    if !wait {
        show(as_json, &json!({ "name": name, "number": number }), || {
            format!("{name} is being scrubbed; see `gabion volume show {name}`")
        });
        return Ok(());
    }
    let mut bar = (!as_json).then(|| Bar::new(name));
    let done = loop {
        let scrubs = remote.volume(name)?.scrub.unwrap_or_default();
        let last = if deep { scrubs.deep } else { scrubs.light };
        if let Some(done) = last.filter(|done| done.number >= number) {
            break done;
        }
        if let (Some(bar), Some(at)) = (&mut bar, scrubs.under_way) {
            bar.set(at.done_bytes, at.total_bytes);
        }
        std::thread::sleep(LOOK_EVERY);
    };
    if let Some(bar) = bar {
        bar.done(0);
    }
    let found = done.found.unwrap_or_default();
    show(as_json, &view::scrub_done(&done), || format!("{name}: {}", summary(&found)));
    let bad = found.lost_blocks + found.differing_blocks;
    if bad > 0 {
        let what = format!("{bad} blocks of {name} could not be mended");
        let next = format!("see `gabion volume show {name}`; overwriting a lost block clears it");
        return Err(Failure::failed(what, next));
    }
    Ok(())
}

fn summary(found: &v1::ScrubFound) -> String {
    let mut parts = vec![format!(
        "{} blocks compared, {} verified: {} bad, {} behind, {} mended",
        found.compared_blocks,
        found.verified_blocks,
        found.bad_blocks,
        found.behind_blocks,
        found.mended_blocks
    )];
    let more = [
        (found.differing_blocks, "differ between copies of one version"),
        (found.lost_blocks, "lost"),
        (found.skipped, "parts passed over"),
    ];
    parts.extend(more.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    parts.join(", ")
}

/// For `volume show`: what is under way, and the last of each kind.
pub fn lines(volume: &v1::Volume) -> Vec<String> {
    let Some(scrubs) = &volume.scrub else { return Vec::new() };
    let mut lines = Vec::new();
    if let Some(at) = &scrubs.under_way {
        let kind = if at.deep { "deep" } else { "light" };
        let percent = at.done_bytes * 100 / at.total_bytes.max(1);
        lines.push(format!("scrub: a {kind} one is under way, {percent} %"));
    }
    let light = scrubs
        .light
        .as_ref()
        .filter(|light| scrubs.deep.as_ref().is_none_or(|deep| deep.number != light.number));
    for (kind, done) in [("deep", scrubs.deep.as_ref()), ("light", light)] {
        if let Some(done) = done {
            let found = summary(&done.found.unwrap_or_default());
            lines.push(format!("last {kind} scrub, {}: {found}", ago(done.at_ms)));
        }
    }
    lines
}

fn ago(at_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    match SystemTime::now().duration_since(at) {
        Ok(since) if at_ms > 0 => format!("{} ago", crate::span::shown(since)),
        _ => "some time ago".to_owned(),
    }
}
