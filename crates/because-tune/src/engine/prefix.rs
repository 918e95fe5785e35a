use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::pages::PagePool;
use crate::ops::PAGE;

/// Prompts and answers that were computed, page by page as a tree: what begins with the same tokens under the same adapter shares its
/// keys and values. Tokens are compared, not their hashes. What was not asked for longest goes first when pages run out.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    found: HashMap<(Place, [u32; PAGE]), u32>,
    nodes: Vec<Option<Node>>,
    vacant: Vec<u32>,
    clock: u64,
}

/// Where in the tree a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// At the beginning, under the adapter of this id.
    Root(u64),
    /// After the page of a node.
    After(u32),
}

#[derive(Debug)]
struct Node {
    page: u32,
    key: (Place, [u32; PAGE]),
    children: u32,
    used: u64,
}

impl PrefixCache {
    /// The page that holds the next tokens of a row that stands at `place`, which the row reads from now on.
    pub(super) fn next(
        &mut self,
        pool: &mut PagePool,
        place: Place,
        tokens: &[u32],
    ) -> Option<(Place, u32)> {
        let tokens = <[u32; PAGE]>::try_from(tokens).ok()?;
        let node = *self.found.get(&(place, tokens))?;
        self.clock += 1;
        let found = self.nodes[node as usize].as_mut()?;
        found.used = self.clock;
        pool.share(found.page);
        Some((Place::After(node), found.page))
    }

    /// Notes a page that a row at `place` has computed. Where there is one of the same tokens already the row reads that one
    /// from now on, which has the same numbers, and its own is free.
    pub(super) fn insert(
        &mut self,
        pool: &mut PagePool,
        place: Place,
        tokens: &[u32],
        page: &mut u32,
    ) -> Option<Place> {
        if let Some((place, known)) = self.next(pool, place, tokens) {
            pool.release(*page);
            *page = known;
            return Some(place);
        }
        let key = (place, <[u32; PAGE]>::try_from(tokens).ok()?);
        self.clock += 1;
        let node = Node {
            page: *page,
            key,
            children: 0,
            used: self.clock,
        };
        pool.keep(*page);
        if let Place::After(parent) = place
            && let Some(parent) = &mut self.nodes[parent as usize]
        {
            parent.children += 1;
        }
        let index = match self.vacant.pop() {
            Some(index) => {
                self.nodes[index as usize] = Some(node);
                index
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() as u32 - 1
            }
        };
        self.found.insert(key, index);
        Some(Place::After(index))
    }

    /// Lets go of `wanted` pages that no row reads, or more, so that looking for them does not come to count: leaves first,
    /// those that were not asked for longest.
    pub(super) fn evict(&mut self, pool: &mut PagePool, wanted: usize) {
        let lets_go = |node: &Node| node.children == 0 && pool.is_idle(node.page);
        let leaf = |(index, node): (usize, &Option<Node>)| {
            let node = node.as_ref().filter(|node| lets_go(node))?;
            Some(Reverse((node.used, index)))
        };
        let mut leaves: BinaryHeap<Reverse<(u64, usize)>> =
            self.nodes.iter().enumerate().filter_map(leaf).collect();
        for _ in 0..wanted.max(leaves.len() / 16) {
            let Some(Reverse((_, index))) = leaves.pop() else {
                return;
            };
            let Some(node) = self.nodes[index].take() else {
                continue;
            };
            pool.drop_idle(node.page);
            self.found.remove(&node.key);
            self.vacant.push(index as u32);
            let Place::After(parent) = node.key.0 else {
                continue;
            };
            if let Some(node) = &mut self.nodes[parent as usize] {
                node.children -= 1;
                if node.children == 0 && pool.is_idle(node.page) {
                    leaves.push(Reverse((node.used, parent as usize)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(first: u32) -> Vec<u32> {
        (first..first + PAGE as u32).collect()
    }

    /// A row that computes pages of these tokens and ends.
    fn row(cache: &mut PrefixCache, pool: &mut PagePool, adapter: u64, firsts: &[u32]) -> Vec<u32> {
        let mut place = Place::Root(adapter);
        let mut pages = Vec::new();
        for &first in firsts {
            if let Some((next, page)) = cache.next(pool, place, &tokens(first)) {
                (place, _) = (next, pages.push(page));
                continue;
            }
            let mut page = pool.take().unwrap_or_else(|| {
                cache.evict(pool, 1);
                pool.take().unwrap()
            });
            place = cache
                .insert(pool, place, &tokens(first), &mut page)
                .unwrap();
            pages.push(page);
        }
        pages.iter().for_each(|&page| pool.release(page));
        pages
    }

    #[test]
    fn what_begins_alike_shares_pages_under_one_adapter() {
        let (mut cache, mut pool) = (PrefixCache::default(), PagePool::new(8));
        let first = row(&mut cache, &mut pool, 0, &[0, 100]);
        assert_eq!(row(&mut cache, &mut pool, 0, &[0, 200])[0], first[0]);
        assert_ne!(row(&mut cache, &mut pool, 1, &[0])[0], first[0]);
        assert_ne!(row(&mut cache, &mut pool, 0, &[100])[0], first[1]);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn the_page_not_asked_for_longest_goes_first_and_a_parent_after_its_children() {
        let (mut cache, mut pool) = (PrefixCache::default(), PagePool::new(3));
        let old = row(&mut cache, &mut pool, 0, &[0, 100]);
        let young = row(&mut cache, &mut pool, 0, &[300]);
        assert_eq!(row(&mut cache, &mut pool, 0, &[0])[0], old[0]);
        let new = row(&mut cache, &mut pool, 0, &[400]);
        assert_eq!(
            new[0], old[1],
            "the child, whose parent was asked for since"
        );
        assert_eq!(row(&mut cache, &mut pool, 0, &[300]), young);
        assert_eq!(row(&mut cache, &mut pool, 0, &[0])[0], old[0]);
    }

    #[test]
    fn as_many_pages_go_as_are_wanted_parents_among_them() {
        let (mut cache, mut pool) = (PrefixCache::default(), PagePool::new(8));
        row(&mut cache, &mut pool, 0, &[0, 100, 200, 300]);
        row(&mut cache, &mut pool, 0, &[500]);
        let held = cache.next(&mut pool, Place::Root(0), &tokens(0)).unwrap();
        cache.evict(&mut pool, 3);
        let free = std::iter::from_fn(|| pool.take()).count();
        assert_eq!(free, 3 + 3);
        cache.evict(&mut pool, 9);
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), 1);
        assert_eq!(pool.available(), 0);
        let again = cache.next(&mut pool, Place::Root(0), &tokens(0));
        assert_eq!(again, Some(held), "what a row reads stays");
    }

    #[test]
    fn two_that_computed_the_same_end_with_one_page() {
        let (mut cache, mut pool) = (PrefixCache::default(), PagePool::new(4));
        let (mut one, mut two) = (pool.take().unwrap(), pool.take().unwrap());
        cache.insert(&mut pool, Place::Root(0), &tokens(0), &mut one);
        cache.insert(&mut pool, Place::Root(0), &tokens(0), &mut two);
        assert_eq!(one, two);
        assert_eq!(pool.in_use(), 1);
    }
}
