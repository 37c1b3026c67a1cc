use super::*;
use clap::CommandFactory;

#[test]
fn the_grammar_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_new_node_is_a_name_and_a_host() {
    let node: NewNode = "a=10.0.0.1,peer=9".parse().unwrap();
    assert_eq!((node.name.as_str(), node.host.as_str()), ("a", "10.0.0.1"));
    assert_eq!((node.api, node.peer, node.nbd, node.http), (7400, 9, 10809, 7600));
    for typed in ["a", "=x", "a=", "a=b,api", "a=b,api=x", "a=b,ipa=1", "a=b c"] {
        assert!(typed.parse::<NewNode>().is_err(), "{typed}");
    }
}

#[test]
fn bench_sizes_are_fios() {
    assert_eq!(parse_bench_size("4k"), Ok(4096));
    assert_eq!(parse_bench_size("1M"), Ok(1 << 20));
    assert_eq!(parse_bench_size("512"), Ok(512));
    for typed in ["", "0", "k", "100", "64m", "-4k"] {
        assert!(parse_bench_size(typed).is_err(), "{typed}");
    }
}

#[test]
fn verbs_are_typed_as_the_readme_says() {
    for line in [
        "gabion volume create vm1 --size 20GiB",
        "gabion volume wait vm1 --healthy --timeout 120s --json",
        "gabion --cluster 127.0.0.1:7401,127.0.0.1:7402 status",
        "gabion node kill 2 --signal KILL",
        "gabion up --nodes 2 --disk-size 2GiB --witness --restart",
        "gabion bench vm1 --rw randwrite --bs 4k --depth 16 --seconds 10",
        "gabion volume move vm1 --to node2",
        "gabion events --follow",
        "gabion cluster init --file c.toml --node a=10.0.0.1 --node b=::1,api=1,http=2",
        "gabion node init --config node.toml --force",
        "gabion disk check gabion-data/node1/disk0 --json",
        "gabion disk show /dev/sdb",
        "gabion drill run --only kill,freeze --for 5s",
        "gabion support bundle --out all.tar",
    ] {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    assert!(Cli::try_parse_from("gabion volume create v --size 10G".split(' ')).is_err());
}
