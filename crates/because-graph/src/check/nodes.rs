use std::collections::HashMap;

use because_core::{Item, ItemId, ProfileRecord, Project, Side, Split, User, UserId, jsonl};
use serde::Deserialize;

use super::edges::{Edges, shown, split_of};
use super::{CheckReport, Severity, Tally};
use crate::table::Ids;
use crate::{ColdNode, Result};

/// The rows of users and items against the ends of interactions.
pub(super) fn check(report: &mut CheckReport, project: &Project, edges: &Edges) -> Result<()> {
    #[derive(Deserialize)]
    struct UserRow {
        user: UserId,
    }
    #[derive(Deserialize)]
    struct ItemRow {
        item: ItemId,
    }
    let path = project.users_path();
    if path.exists() {
        let ids = jsonl::read::<UserRow>(&path)?.map(|row| Ok(row?.user.to_string()));
        check_side(report, Side::User, &edges.table.users, ids)?;
    }
    let path = project.items_path();
    if path.exists() {
        let ids = jsonl::read::<ItemRow>(&path)?.map(|row| Ok(row?.item.to_string()));
        check_side(report, Side::Item, &edges.table.items, ids)?;
    }
    Ok(())
}

fn check_side(
    report: &mut CheckReport,
    side: Side,
    in_graph: &Ids,
    in_file: impl Iterator<Item = Result<String>>,
) -> Result<()> {
    let (side, [duplicate, lonely, bare]) = match side {
        Side::User => (
            "user",
            [
                "duplicate_user",
                "user_without_interaction",
                "user_without_row",
            ],
        ),
        Side::Item => (
            "item",
            [
                "duplicate_item",
                "item_without_interaction",
                "item_without_row",
            ],
        ),
    };
    let mut has_row = vec![false; in_graph.len()];
    // Those without an interaction, each with how often it came.
    let mut others: HashMap<String, usize> = HashMap::new();
    let mut repeated = Tally::default();
    let mut any = false;
    for id in in_file {
        let id = id?;
        any = true;
        let again = match in_graph.get(&id) {
            Some(at) => std::mem::replace(&mut has_row[at as usize], true),
            None => {
                let times = others.entry(id.clone()).or_default();
                *times += 1;
                *times > 1
            }
        };
        if again {
            repeated.add(id);
        }
    }
    let name = |id: String| format!("{side} {id}");
    report.add_tally(
        duplicate,
        Severity::Contradiction,
        "two rows of one name",
        None,
        repeated,
        name,
    );
    report.add(
        lonely,
        Severity::Note,
        "known by a row of its own, with no interaction in any split",
        others.into_keys(),
        name,
    );
    // Without a row at all there is nothing to be missing from.
    let without = in_graph
        .names()
        .zip(has_row)
        .filter(|(_, has_row)| any && !has_row);
    report.add(
        bare,
        Severity::Note,
        "known by interactions only, while others have a row of their own",
        without.map(|(id, _)| id),
        |id| name(id.to_owned()),
    );
    Ok(())
}

/// Whether what the profiles of later layers were made of may be known.
pub(super) fn check_profiles(
    report: &mut CheckReport,
    project: &Project,
    edges: &Edges,
) -> Result<()> {
    let Some(last) = project.last_layer() else {
        return Ok(());
    };
    let mut found = Tally::default();
    for layer in 1..=last {
        for record in jsonl::read::<ProfileRecord>(&project.profiles_path(layer))? {
            let record = record?;
            for neighbor in &record.neighbors {
                let (user, item) = match record.kind {
                    Side::User => (&record.id, neighbor),
                    Side::Item => (neighbor, &record.id),
                };
                let held_out = edges
                    .splits(user, item)
                    .find(|&split| split != Split::Train);
                if let Some(split) = held_out {
                    found.add((layer, (user.clone(), item.clone()), split));
                }
            }
        }
    }
    report.add_tally(
        "profile_read_held_out_edge",
        Severity::Leak,
        "a profile was made of a neighbour whose interaction is held out; make the profiles again",
        None,
        found,
        |(layer, (user, item), split)| {
            format!("layer {layer}: {} ({split})", shown((&user, &item)))
        },
    );
    Ok(())
}

/// Whether the nodes that were made cold are.
pub(super) fn check_cold(report: &mut CheckReport, project: &Project, edges: &Edges) -> Result<()> {
    let path = project.path("cold.jsonl");
    if !path.exists() {
        return Ok(());
    }
    let table = &edges.table;
    // How many train and valid interactions each node has.
    let mut degrees = [
        vec![[0_u32; 2]; table.users.len()],
        vec![[0; 2]; table.items.len()],
    ];
    for row in &table.rows {
        let place = match split_of(row) {
            Split::Train => 0,
            Split::Valid => 1,
            Split::Test | Split::Hidden => continue,
        };
        degrees[0][row.user as usize][place] += 1;
        degrees[1][row.item as usize][place] += 1;
    }
    let mut cold = [
        vec![false; table.users.len()],
        vec![false; table.items.len()],
    ];
    let (mut knows_more, mut otherwise) = (Tally::default(), Tally::default());
    let mut count = 0;
    for node in jsonl::read::<ColdNode>(&path)? {
        let node = node?;
        count += 1;
        let (side, ids) = match node.kind {
            Side::User => (0, &table.users),
            Side::Item => (1, &table.items),
        };
        let has = ids.get(&node.id).map(|at| {
            cold[side][at as usize] = true;
            degrees[side][at as usize]
        });
        let found = (node.kind, node.id, node.kept, has.unwrap_or_default());
        match has {
            Some([train, valid]) if train > node.kept || valid > 0 => knows_more.add(found),
            Some([train, _]) if train == node.kept => {}
            _ => otherwise.add(found),
        }
    }
    let said = |(kind, id, kept, [train, valid]): (Side, String, u32, [u32; 2])| {
        format!(
            "{} {id}: keeps {kept}, has {train} train and {valid} valid",
            side(kind)
        )
    };
    report.add_tally(
        "cold_node_knows_more",
        Severity::Leak,
        "a node that was made cold has more train interactions than it was left with, or a valid one",
        Some(count),
        knows_more,
        said,
    );
    report.add_tally(
        "cold_node_knows_less",
        Severity::Contradiction,
        "a node that was made cold has fewer train interactions than cold.jsonl says",
        Some(count),
        otherwise,
        said,
    );
    let of_nobody = table.rows.iter().filter(|row| {
        split_of(row) == Split::Hidden && !cold[0][row.user as usize] && !cold[1][row.item as usize]
    });
    report.add(
        "hidden_edge_of_no_cold_node",
        Severity::Warning,
        "an interaction is hidden, and neither its user nor its item is in cold.jsonl",
        of_nobody.map(|row| edges.pair(row)),
        shown,
    );
    check_given_profiles(report, project, edges, &cold)
}

fn check_given_profiles(
    report: &mut CheckReport,
    project: &Project,
    edges: &Edges,
    cold: &[Vec<bool>; 2],
) -> Result<()> {
    let mut found = Tally::default();
    let is_cold = |ids: &Ids, of: &[bool], id: &str| ids.get(id).is_some_and(|at| of[at as usize]);
    let path = project.users_path();
    if path.exists() {
        for user in jsonl::read::<User>(&path)? {
            let user = user?;
            if user.profile.is_some() && is_cold(&edges.table.users, &cold[0], user.user.as_str()) {
                found.add((Side::User, user.user.to_string()));
            }
        }
    }
    let path = project.items_path();
    if path.exists() {
        for item in jsonl::read::<Item>(&path)? {
            let item = item?;
            if item.profile.is_some() && is_cold(&edges.table.items, &cold[1], item.item.as_str()) {
                found.add((Side::Item, item.item.to_string()));
            }
        }
    }
    report.add_tally(
        "cold_node_with_given_profile",
        Severity::Warning,
        "a node that was made cold has a profile from the data, which may have been written by who knew what is hidden now",
        None,
        found,
        |(kind, id)| format!("{} {id}", side(kind)),
    );
    Ok(())
}

fn side(kind: Side) -> &'static str {
    match kind {
        Side::User => "user",
        Side::Item => "item",
    }
}
