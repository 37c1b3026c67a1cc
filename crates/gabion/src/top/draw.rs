//! One picture of what is known.

use super::{Order, Rates, Top};
use crate::size::ByteSize;
use crate::span;
use gabion_api::{v1, view};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, LineGauge, Paragraph, Row, Sparkline, Table, Wrap};
use std::time::Duration;

/// Of what is wrong and of what is being copied; the rest is a number.
const PROBLEMS_MAX: usize = 4;
const REBUILDS_MAX: usize = 4;
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const QUIET: Style = Style::new().fg(Color::DarkGray);

pub fn draw(frame: &mut Frame<'_>, top: &Top) {
    let Some(status) = &top.status else {
        let words = top.failed.as_deref().unwrap_or("asking the cluster");
        frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), frame.area());
        return;
    };
    let problems = problems(top, status);
    let rebuilds: Vec<_> = status.volumes.iter().filter(|v| v.rebuild.is_some()).collect();
    let copied = rebuilds.len().min(REBUILDS_MAX);
    let rows = |count: usize| Constraint::Length(u16::try_from(count).unwrap_or(u16::MAX));
    let border = usize::from(copied > 0);
    let [head, wrong, history, nodes, copies, volumes, foot] = Layout::vertical([
        rows(2),
        rows(problems.len()),
        rows(4),
        rows(status.nodes.len() + 2),
        rows(copied + border),
        Constraint::Min(3),
        rows(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(headline(status)), head);
    frame.render_widget(Paragraph::new(problems), wrong);
    draw_history(frame, top, history);
    frame.render_widget(node_table(top, status), nodes);
    draw_rebuilds(frame, top, &rebuilds, copies);
    frame.render_widget(volume_table(top, status), volumes);
    let order = match top.order {
        Order::Busiest => "busiest first",
        Order::Name => "by name",
    };
    let keys = format!("q ends; s sorts ({order}); up and down scroll");
    frame.render_widget(Paragraph::new(keys).style(QUIET), foot);
}

fn colour(health: i32) -> Style {
    Style::new().fg(match v1::Health::try_from(health) {
        Ok(v1::Health::Healthy) => Color::Green,
        Ok(v1::Health::Degraded) => Color::Yellow,
        Ok(v1::Health::Held | v1::Health::Lost) => Color::Red,
        Ok(v1::Health::Unspecified) | Err(_) => Color::Reset,
    })
}

fn headline(status: &v1::StatusResponse) -> Vec<Line<'static>> {
    let leader = match status.leader {
        Some(leader) => format!("; node {leader} leads"),
        None => "; nobody leads: no majority".to_owned(),
    };
    let survives = status.safety.as_ref().map_or(String::new(), |safety| {
        let yes = if safety.survives_any_node { "yes" } else { "NO" };
        format!("survives the loss of any one node: {yes}; ")
    });
    let room = status.capacity.as_ref().map_or(String::new(), |capacity| {
        let (used, total) = (ByteSize(capacity.used_bytes), ByteSize(capacity.total_bytes));
        format!("{used} of {total} used")
    });
    let health = view::health(status.health);
    let cluster = status.cluster_id.get(..8).unwrap_or_default().to_owned();
    vec![
        Line::from(vec![
            Span::raw("cluster "),
            Span::raw(cluster),
            Span::raw(": "),
            Span::styled(health, colour(status.health).patch(HEAD)),
            Span::raw(leader),
        ]),
        Line::from(survives + &room),
    ]
}

/// What is wrong first, then what was asked for.
fn problems(top: &Top, status: &v1::StatusResponse) -> Vec<Line<'static>> {
    let red = Style::new().fg(Color::Red);
    let failed = top.failed.iter().map(|why| Line::styled(format!("  ! {why}"), red));
    let problems = status.problems.iter().map(|text| Line::raw(format!("  - {text}")));
    let notes = status.notes.iter().map(|text| Line::raw(format!("  * {text}")));
    let mut lines: Vec<Line<'_>> = failed.chain(problems).chain(notes).collect();
    if lines.len() > PROBLEMS_MAX {
        let more = lines.len() - (PROBLEMS_MAX - 1);
        lines.truncate(PROBLEMS_MAX - 1);
        lines.push(Line::styled(format!("    and {more} more: `gabion status`"), QUIET));
    }
    lines
}

fn draw_history(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    let now = top.history.last().map_or("-".to_owned(), u64::to_string);
    let most = top.history.iter().max().copied().unwrap_or_default();
    let title = format!("requests a second: {now}, at most {most}");
    let block = Block::new().borders(Borders::TOP).title(title);
    // The newest that have room.
    let from = top.history.len().saturating_sub(area.width.into());
    let line = Sparkline::default().block(block).data(&top.history[from..]);
    frame.render_widget(line.style(Style::new().fg(Color::Cyan)), area);
}

fn node_table(top: &Top, status: &v1::StatusResponse) -> Table<'static> {
    let rows = status.nodes.iter().map(|node| {
        let owns =
            |volume: &&v1::Volume| volume.owner.as_ref().is_some_and(|owner| owner.node == node.id);
        let owned: Vec<_> = status.volumes.iter().filter(owns).collect();
        let rates = owned.iter().filter_map(|volume| top.rates(volume.id));
        // A sum of nothing would be -0.
        let requests = rates.map(Rates::requests).fold(0.0, |sum, more| sum + more);
        let used: u64 = node.disks.iter().filter_map(|disk| disk.used_bytes).sum();
        let all: u64 = node.disks.iter().map(|disk| disk.capacity_bytes).sum();
        let up = node.state == i32::from(v1::NodeState::Up);
        let row = Row::new([
            node.name.clone(),
            view::node_state(node).to_owned(),
            span::shown(Duration::from_millis(node.since_ms)),
            if node.leader {
                "leads"
            } else if node.voter {
                "votes"
            } else {
                "-"
            }
            .to_owned(),
            format!("{} of {}", ByteSize(used), ByteSize(all)),
            node.guests.to_string(),
            owned.len().to_string(),
            format!("{requests:.0}"),
        ]);
        if up { row } else { row.style(Style::new().fg(Color::Red)) }
    });
    let head = ["NODE", "STATE", "SINCE", "VOTE", "DISKS", "GUESTS", "OWNS", "REQ/S"];
    let widths = [14, 8, 8, 6, 24, 7, 6, 8].map(Constraint::Length);
    Table::new(rows, widths)
        .header(Row::new(head).style(HEAD))
        .block(Block::new().borders(Borders::TOP))
}

fn draw_rebuilds(frame: &mut Frame<'_>, top: &Top, volumes: &[&v1::Volume], area: Rect) {
    if volumes.is_empty() {
        return;
    }
    let title = match volumes.len().saturating_sub(REBUILDS_MAX) {
        0 => "being copied".to_owned(),
        more => format!("being copied (and {more} more)"),
    };
    let block = Block::new().borders(Borders::TOP).title(title);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    for (volume, line) in volumes.iter().zip(inside.rows()) {
        let ratio = top.rebuilt(volume).unwrap_or_default().clamp(0.0, 1.0);
        let words = format!("{}: {}", volume.name, crate::verbs::status::rebuild(volume));
        let gauge = LineGauge::default().ratio(ratio).label(words);
        frame.render_widget(gauge.filled_style(Style::new().fg(Color::Cyan)), line);
    }
}

fn volume_table(top: &Top, status: &v1::StatusResponse) -> Table<'static> {
    let rows = top.volumes(status).into_iter().skip(top.first).map(|volume| {
        let owner = volume.owner.as_ref().map_or("-".to_owned(), |owner| owner.name.clone());
        let rates = top.rates(volume.id);
        let number =
            |of: fn(&Rates) -> f64| rates.map_or("-".to_owned(), |r| format!("{:.0}", of(r)));
        let held = volume.traffic.as_ref().map_or(0, |traffic| traffic.held_requests);
        Row::new([
            Span::raw(volume.name.clone()),
            Span::styled(view::health(volume.health), colour(volume.health)),
            Span::raw(owner),
            Span::raw(volume.guests.to_string()),
            Span::raw(number(|rates| rates.reads)),
            Span::raw(rates.map_or("-".to_owned(), |rates| size(rates.read_bytes))),
            Span::raw(took(rates.and_then(|rates| rates.read_p99))),
            Span::raw(number(|rates| rates.writes)),
            Span::raw(rates.map_or("-".to_owned(), |rates| size(rates.write_bytes))),
            Span::raw(took(rates.and_then(|rates| rates.write_p99))),
            Span::raw(if held == 0 { String::new() } else { format!("{held} held") }),
        ])
    });
    let head =
        ["VOLUME", "HEALTH", "OWNER", "GUESTS", "READ/S", "", "P99", "WRITE/S", "", "P99", ""];
    let widths = [18, 9, 10, 6, 7, 10, 8, 7, 10, 8, 10].map(Constraint::Length);
    Table::new(rows, widths)
        .header(Row::new(head).style(HEAD))
        .block(Block::new().borders(Borders::TOP))
}

/// Of a second.
fn size(bytes: f64) -> String {
    // Not negative, and no disk moves 2^63 bytes a second.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = bytes as u64;
    ByteSize(bytes).to_string()
}

fn took(span: Option<Duration>) -> String {
    match span.map(|span| span.as_micros()) {
        None => "-".to_owned(),
        Some(us @ 0..1000) => format!("{us} us"),
        Some(us @ 1000..100_000) => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        Some(us) => format!("{} ms", us / 1000),
    }
}
