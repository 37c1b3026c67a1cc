//! Who uses a volume, and who shall not any more.

use crate::failure::Failure;
use crate::remote::Remote;
use crate::verbs::show;
use gabion_api::v1;
use gabion_api::view;
use serde_json::{Value, json};

pub fn list(remote: &Remote, name: &str, as_json: bool) -> Result<(), Failure> {
    let found = remote.clients(name)?;
    show(as_json, &view::clients(&found), || text(name, &found));
    Ok(())
}

fn text(name: &str, found: &v1::ClientsResponse) -> String {
    let row = |client: &v1::VolumeClient| {
        vec![
            client.id.clone(),
            client.node.to_string(),
            client.protocol.clone(),
            client.from.clone(),
            format!("{} s", client.connected_ms / 1000),
            if client.waiting { "waits" } else { "attached" }.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = found.clients.iter().map(row).collect();
    let mut text = if rows.is_empty() {
        format!("nobody is connected to {name}")
    } else {
        view::table(&["CLIENT", "NODE", "BY", "FROM", "FOR", "STATE"], &rows)
    };
    for (nodes, what) in [
        (&found.silent, "did not say who is there"),
        (
            &found.kept_out,
            "has guests that were evicted, and stay out until one of another node is in",
        ),
    ] {
        for node in nodes {
            text.push_str(&format!("\nnode {node} {what}"));
        }
    }
    text
}

pub fn evict(
    remote: &Remote,
    name: &str,
    client: Option<&str>,
    let_back: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let client = client.unwrap_or_default().to_owned();
    let done = remote.evict(v1::EvictRequest { name: name.to_owned(), client, let_back })?;
    let kept_out: Vec<Value> = done.kept_out.iter().map(|node| node.to_string().into()).collect();
    let shown = json!({ "name": name, "clients": done.clients, "kept_out": kept_out });
    show(as_json, &shown, || {
        let mut text = match (let_back, done.clients) {
            (true, _) => format!("{name}: every node's guests are let in again"),
            (false, 1) => format!("{name}: 1 client is evicted"),
            (false, count) => format!("{name}: {count} clients are evicted"),
        };
        for node in &done.kept_out {
            text.push_str(&format!(
                "\nnode {node} is kept out until a guest of another node is in"
            ));
        }
        text
    });
    Ok(())
}
