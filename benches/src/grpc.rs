//! The gRPC I/O stream, loaded as fio loads NBD: so many random writes in flight for so long.

use bytes::Bytes;
use gabion_api::IoClient;
use gabion_types::Prng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

const OPENS_WITHIN: Duration = Duration::from_secs(10);

/// Writes a second, over one stream.
pub fn write_iops(node: &str, volume: &str, block: usize, depth: usize, seconds: u32) -> f64 {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a thread can be started");
    runtime.block_on(async {
        let client = IoClient::open_within(&[node.to_owned()], volume, OPENS_WITHIN).await;
        let client = Arc::new(client.unwrap_or_else(|e| panic!("{e}")));
        let slots = client.size_bytes() / block as u64;
        let began = Instant::now();
        let until = began + Duration::from_secs(u64::from(seconds));
        let mut writers = JoinSet::new();
        for seed in 1..=depth as u64 {
            let client = Arc::clone(&client);
            writers.spawn(async move {
                let mut chance = Prng::new(seed);
                let words = (0..block / 8).flat_map(|_| chance.next_u64().to_le_bytes());
                let data: Bytes = words.collect();
                let mut written = 0u64;
                while Instant::now() < until {
                    let offset = chance.below(slots) * block as u64;
                    client.write(offset, data.clone()).await.unwrap_or_else(|e| panic!("{e}"));
                    written += 1;
                }
                written
            });
        }
        let written: u64 = writers.join_all().await.into_iter().sum();
        written as f64 / began.elapsed().as_secs_f64()
    })
}
