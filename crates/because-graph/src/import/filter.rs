use std::collections::{BTreeMap, HashMap, HashSet};

use because_core::{Interaction, Item, ItemId, User, UserId};

use super::Filtered;
use super::gather::Origin;
use crate::kcore::core_numbers;

/// The interactions of an import, sorted by user and item, and the rows of users and items that go with them.
pub(super) struct Filter<'a> {
    pub(super) interactions: &'a mut Vec<Interaction>,
    pub(super) users: &'a mut BTreeMap<UserId, (User, Origin)>,
    pub(super) items: &'a mut BTreeMap<ItemId, (Item, Origin)>,
}

impl Filter<'_> {
    pub(super) fn run(mut self, min_rating: Option<f64>, k_core: Option<usize>) -> Filtered {
        let mut filtered = Filtered::default();
        if let Some(least) = min_rating {
            // Nobody knows that an interaction without a rating was liked.
            let liked = |interaction: &Interaction| interaction.rating.is_some_and(|r| r >= least);
            let kept = self.interactions.iter().map(liked).collect();
            filtered.min_rating = self.keep(kept);
        }
        if let Some(k) = k_core {
            let kept = in_core(self.interactions, k);
            filtered.k_core = self.keep(kept);
        }
        filtered
    }

    /// Keeps the interactions marked, and every user and item but those that lose their last interaction by it. A node that
    /// had none before is not the filter's business: it is cold, and stays.
    fn keep(&mut self, kept: Vec<bool>) -> u64 {
        let before = self.rows();
        let ends = |interactions: &[Interaction]| -> (HashSet<UserId>, HashSet<ItemId>) {
            interactions
                .iter()
                .map(|interaction| (interaction.user.clone(), interaction.item.clone()))
                .unzip()
        };
        let (users_before, items_before) = ends(self.interactions);
        let mut kept = kept.into_iter();
        self.interactions.retain(|_| kept.next().unwrap_or(false));
        let (users, items) = ends(self.interactions);
        self.users
            .retain(|id, _| users.contains(id) || !users_before.contains(id));
        self.items
            .retain(|id, _| items.contains(id) || !items_before.contains(id));
        before - self.rows()
    }

    fn rows(&self) -> u64 {
        (self.interactions.len() + self.users.len() + self.items.len()) as u64
    }
}

fn in_core(interactions: &[Interaction], k: usize) -> Vec<bool> {
    let mut nodes: HashMap<(bool, &str), u32> = HashMap::new();
    let mut place = |side, id| {
        let next = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        *nodes.entry((side, id)).or_insert(next)
    };
    let edges: Vec<(u32, u32)> = interactions
        .iter()
        .map(|interaction| {
            let user = place(false, interaction.user.as_str());
            (user, place(true, interaction.item.as_str()))
        })
        .collect();
    let cores = core_numbers(nodes.len(), &edges);
    edges
        .iter()
        .map(|&(user, item)| cores[user as usize].min(cores[item as usize]) as usize >= k)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(user: &str, item: &str, rating: Option<f64>) -> Interaction {
        Interaction {
            rating,
            ..Interaction::new(user, item)
        }
    }

    fn run(
        interactions: &mut Vec<Interaction>,
        min_rating: Option<f64>,
        k_core: Option<usize>,
    ) -> Filtered {
        Filter {
            interactions,
            users: &mut BTreeMap::new(),
            items: &mut BTreeMap::new(),
        }
        .run(min_rating, k_core)
    }

    #[test]
    fn the_unrated_and_the_disliked_go() {
        let mut rows = vec![
            row("a", "x", Some(3.0)),
            row("a", "y", Some(2.9)),
            row("b", "x", None),
        ];
        let filtered = run(&mut rows, Some(3.0), None);
        assert_eq!((filtered.min_rating, rows.len()), (2, 1));
    }

    #[test]
    fn a_core_is_peeled_until_it_holds() {
        // c hangs on z, which hangs on c: both go at 2, and nothing else.
        let mut rows: Vec<_> = ["ax", "ay", "bx", "by", "bz", "cz"]
            .map(|pair| row(&pair[..1], &pair[1..], None))
            .into();
        let filtered = run(&mut rows, None, Some(2));
        assert_eq!((filtered.k_core, rows.len()), (2, 4));
        assert_eq!(run(&mut rows, None, Some(2)).k_core, 0);
        assert_eq!(run(&mut rows, None, Some(3)).k_core, 4);
    }
}
