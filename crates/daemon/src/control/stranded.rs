//! `volume recover`: what is left of segments whose copies are all gone, and an operator's word to go on with it.

use crate::control::ask::Context;
use crate::control::errors::no_volume;
use gabion_api::v1::{
    RecoverVolumeRequest, RecoverVolumeResponse, Remains as Shown, StrandedSegment,
};
use gabion_cluster::{AdminRequest, Map, Remains, Stranded};
use tonic::Status;

/// On the leader.
pub async fn recover(
    context: &Context,
    request: RecoverVolumeRequest,
) -> Result<RecoverVolumeResponse, Status> {
    let RecoverVolumeRequest { name, accept_loss } = request;
    let found = context.map.read_map(|map| {
        let all = map.stranded(map.volume_by_name(&name)?);
        let shown = all.iter().map(|one| shown(map, one)).collect();
        let whole = |one: &&Stranded| matches!(one.remains, Remains::Whole { .. });
        let lost = all.iter().filter(|one| !whole(one));
        Some((shown, lost.map(|one| (one.segment, one.remains.disk())).collect()))
    });
    let (stranded, survivors): (Vec<StrandedSegment>, Vec<_>) =
        found.ok_or_else(|| no_volume(&name).into_status())?;
    if accept_loss {
        let request = AdminRequest::AcceptLoss { name: name.clone(), survivors };
        context.admin(request, &name).await?;
    }
    Ok(RecoverVolumeResponse { stranded })
}

fn shown(map: &Map, one: &Stranded) -> StrandedSegment {
    let remains = match one.remains {
        Remains::Whole { .. } => Shown::Whole,
        Remains::Older { .. } => Shown::Older,
        Remains::Part { .. } => Shown::Part,
        Remains::Nothing => Shown::Nothing,
    };
    let disk = one.remains.disk();
    StrandedSegment {
        segment: u64::from(one.segment.get()),
        remains: remains.into(),
        node: disk.and_then(|disk| map.disk(disk)).map(|entry| entry.node.get()),
        disk: disk.map(|disk| disk.get()),
    }
}
