//! `gabion completions` and `gabion man`: what shells and `man` are told of the command line, made of the same grammar that reads it.

use crate::cli::Cli;
use crate::failure::Failure;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;
use std::path::Path;

pub fn completions(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gabion", &mut script);
    // A reader who has seen enough may go.
    let _ = std::io::stdout().lock().write_all(&script);
}

/// One page for each verb. Errors: the directory cannot be made, or written into.
pub fn pages(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|e| Failure::io("make", dir, &e))?;
    let command = Cli::command().name("gabion");
    clap_mangen::generate_to(command, dir).map_err(|e| Failure::io("write into", dir, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_page() {
        let dir = std::env::temp_dir().join(format!("gabion-man-{}", std::process::id()));
        pages(&dir).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        assert!(page("gabion.1").contains("Replicated block volumes"));
        assert!(page("gabion-volume-create.1").contains("\\-\\-size"));
        assert!(page("gabion-drill-run.1").contains("gabion drill run"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn shells_are_told_of_each_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "gabion", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("evict") && script.contains("drill"), "{shell}");
        }
    }
}
