//! Owns which slot calls a change needs: what goes, what comes before memory changes, and what after
//! it. Never makes one.

use std::collections::{BTreeMap, BTreeSet};

use super::shared::Shared;
use super::transaction::State;
use crate::layout::{Mapping, Undo};
use crate::range::PageRange;
use crate::slots::table::Extent;

/// The slot calls that a change needs.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) delete: Vec<Extent>,
    /// Slots over memory that does not change.
    pub(super) before: Vec<Extent>,
    /// Slots over memory that changes.
    pub(super) after: Vec<Extent>,
}

impl State {
    pub(super) fn plan(&self, shared: &Shared, undos: &[Undo]) -> Plan {
        let in_place = self.layout.any_in_place()
            || undos
                .iter()
                .any(|undo| undo.before().iter().any(|old| old.in_place().is_some()));
        let rest = shared.backend.slots_rest() && !in_place;
        if rest && undos.iter().all(|undo| self.slots.covers(undo.range())) {
            return Plan::default();
        }
        let changing: Vec<PageRange> = undos.iter().map(Undo::range).collect();
        self.plan_over(shared, &spans(undos), &changing)
    }

    /// The slot calls after which the slots in reach of `spans` are what the backend wants, given
    /// that memory changes in `changing`.
    pub(super) fn plan_over(
        &self,
        shared: &Shared,
        spans: &[PageRange],
        changing: &[PageRange],
    ) -> Plan {
        let backend = &shared.backend;
        let reaches: BTreeSet<PageRange> = spans
            .iter()
            .flat_map(|span| backend.reaches(*span))
            .collect();
        let mut registered = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        let keyed = |extent: Extent| (extent.range.start(), extent);
        for reach in reaches {
            let used = self.slots.overlapping(reach).next().is_some();
            if used || self.layout.overlapping(reach).next().is_some() {
                wanted.extend(backend.extents(&self.layout, reach).into_iter().map(keyed));
            }
            registered.extend(self.slots.overlapping(reach).map(keyed));
        }
        let must_go = |extent: &Extent| {
            !backend.slots_rest()
                && changing
                    .iter()
                    .any(|range| range.intersection(extent.range).is_some())
        };
        let missing = |from: &BTreeMap<u64, Extent>, extent: &Extent| {
            from.get(&extent.range.start()) != Some(extent) || must_go(extent)
        };
        let delete = registered
            .values()
            .filter(|e| missing(&wanted, e))
            .copied()
            .collect();
        let create = wanted.values().filter(|e| missing(&registered, e)).copied();
        let (after, before) = create.partition(must_go);
        Plan {
            delete,
            before,
            after,
        }
    }
}

/// Everything that the changes touch: their own ranges, and the mappings that they met.
pub(super) fn spans(undos: &[Undo]) -> Vec<PageRange> {
    let met = undos
        .iter()
        .flat_map(|undo| undo.before().iter().map(Mapping::range));
    undos.iter().map(Undo::range).chain(met).collect()
}
