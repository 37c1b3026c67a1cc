//! `gabion cluster recover --force-majority`: more voters are gone for good than the cluster bears. Those that
//! are left go on, with what the newest of their logs has.

use crate::cli::RecoverArgs;
use crate::failure::{Exit, Failure};
use crate::process;
use crate::verbs::recover::{cannot, configs, highest_term};
use crate::verbs::show;
use gabion_daemon::recover::majority::{Plan, Refused, Survivor, plan};
use gabion_types::NodeId;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

pub fn run(args: &RecoverArgs, as_json: bool) -> Result<(), Failure> {
    let runtime = process::runtime()?;
    let mut survivors: Vec<Survivor> = Vec::new();
    for config in configs(&args.force_majority)? {
        let held = runtime.block_on(Survivor::hold(process::settings(&config)?));
        let survivor = held.map_err(|error| cannot(&error))?;
        let (cluster, id) = (survivor.settings.cluster, survivor.settings.info.id);
        if survivors.iter().any(|other| other.settings.cluster != cluster) {
            let what = format!("node {} is of another cluster", id.get());
            return Err(Failure::new(Exit::Refused, what, "name the nodes of one cluster"));
        }
        survivors.push(survivor);
    }
    let lost: BTreeSet<NodeId> = args.lost.iter().copied().map(NodeId::new).collect();
    let plan = plan(&survivors, &lost).map_err(|refused| in_words(&refused))?;
    let mut before = Vec::new();
    if !args.dry_run {
        let term = highest_term();
        for survivor in &survivors {
            let given = runtime.block_on(survivor.go_on(&plan, term));
            before.push(given.map_err(|error| cannot(&error))?);
        }
    }
    let ids =
        |ids: &BTreeSet<NodeId>| ids.iter().map(|id| id.get().to_string()).collect::<Vec<_>>();
    let here: BTreeSet<NodeId> =
        survivors.iter().map(|survivor| survivor.settings.info.id).collect();
    let value = json!({
        "voters": ids(&here), "lost": ids(&lost), "not_removed": ids(&plan.kept),
        "newest": plan.newest.get().to_string(), "written": !args.dry_run,
        "logs_before": before.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
    });
    show(as_json, &value, || text(&plan, &ids(&here), &ids(&lost), &before));
    Ok(())
}

fn in_words(refused: &Refused) -> Failure {
    let next = match refused {
        Refused::Nobody => "name the directory of each node that is left".to_owned(),
        Refused::Majority { .. } => "nothing was written".to_owned(),
        Refused::OtherLost { missing, .. } => {
            let typed: Vec<String> = missing.iter().map(u32::to_string).collect();
            format!(
                "nothing was written; if they are gone for good: --lost {}; if one of them is not, name it",
                typed.join(",")
            )
        }
        Refused::Unknown(_) => "leave it out".to_owned(),
    };
    Failure::new(Exit::Refused, refused.to_string(), next)
}

fn text(plan: &Plan, here: &[String], lost: &[String], before: &[PathBuf]) -> String {
    let mut lines = vec![
        format!(
            "nodes {} vote from now on, with the log of node {}; what only nodes {} had heard of is LOST: \
             writes to copies that were removed meanwhile, volumes, settings",
            here.join(", "),
            plan.newest.get(),
            lost.join(", ")
        ),
        format!(
            "nodes {} must NEVER run again with what is on their disks; format them before they are used",
            lost.join(", ")
        ),
    ];
    if !plan.kept.is_empty() {
        let kept: Vec<String> = plan.kept.iter().map(|id| id.get().to_string()).collect();
        lines.push(format!(
            "nodes {} have the only copies of some segments, which are held; so they are not removed, and nobody \
             would tell them to stop",
            kept.join(", ")
        ));
    }
    lines.extend(before.iter().map(|path| format!("the log as it was: {}", path.display())));
    lines.push(if before.is_empty() {
        "nothing was written (--dry-run)".to_owned()
    } else {
        "start them all".to_owned()
    });
    lines.join("\n")
}
