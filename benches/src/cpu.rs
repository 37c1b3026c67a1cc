//! What processes use of the processors, from /proc.

use std::time::{Duration, Instant};

/// Of one tick of `utime` and `stime`. Source: proc_pid_stat(5); USER_HZ is 100 on Linux.
const TICK: Duration = Duration::from_millis(10);

/// Of a set of processes since they began.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    at: Instant,
    cpu: Duration,
}

impl Used {
    /// Processes that ended count as nothing.
    pub fn now(pids: &[u32]) -> Self {
        let ticks: u64 = pids.iter().filter_map(|pid| ticks(*pid)).sum();
        Self { at: Instant::now(), cpu: TICK * u32::try_from(ticks).unwrap_or(u32::MAX) }
    }

    /// Parts of one core since then.
    pub fn share_since(&self, then: &Self) -> f64 {
        let cpu = self.cpu.saturating_sub(then.cpu);
        cpu.as_secs_f64() / (self.at - then.at).as_secs_f64()
    }
}

/// With those of its threads, and of its children that it waited for.
fn ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have blanks and parentheses in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    (11..=14).map(|field| fields.get(field)?.parse::<u64>().ok()).sum()
}

/// A process, and those that it started.
pub fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_a_core() {
        let me = [std::process::id()];
        let then = Used::now(&me);
        let until = Instant::now() + Duration::from_secs(30);
        let used = || Used::now(&me).cpu.saturating_sub(then.cpu);
        while used() < TICK * 10 && Instant::now() < until {}
        assert!(used() >= TICK * 10, "half a minute of work is seen");
        let share = Used::now(&me).share_since(&then);
        assert!(share > 0.0 && share < 64.0, "{share}");
        assert!(family(me[0]).contains(&me[0]));
        assert_eq!(ticks(u32::MAX), None);
    }
}
