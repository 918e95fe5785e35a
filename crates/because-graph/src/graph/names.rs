use because_core::Side;

use crate::hash::id_key;
use crate::table::Ids;
use crate::{Error, Result};

/// The ids of all nodes in one piece, users before items and each side in id order, with a key for each that stands for it
/// in lots.
#[derive(Debug, Clone)]
pub(super) struct Names {
    text: String,
    /// Where each begins in `text`; one more marks the end.
    starts: Vec<u32>,
    keys: Vec<u64>,
    users: usize,
}

impl Names {
    /// The names, and for each side the place among all nodes of each of its ids.
    pub(super) fn new(users: &Ids, items: &Ids) -> Result<(Self, [Vec<u32>; 2])> {
        let count = users.len() + items.len();
        let bytes: usize = users.names().chain(items.names()).map(str::len).sum();
        if count >= u32::MAX as usize {
            return Err(Error::TooLarge {
                what: "nodes",
                count,
            });
        }
        if bytes >= u32::MAX as usize {
            return Err(Error::TooLarge {
                what: "bytes of ids",
                count: bytes,
            });
        }
        let mut names = Self {
            text: String::with_capacity(bytes),
            starts: Vec::with_capacity(count + 1),
            keys: Vec::with_capacity(count),
            users: users.len(),
        };
        names.starts.push(0);
        let places = [users, items].map(|ids| names.add(ids));
        Ok((names, places))
    }

    fn add(&mut self, ids: &Ids) -> Vec<u32> {
        let mut places = vec![0; ids.len()];
        for number in in_order(ids) {
            let name = ids.name(number);
            places[number as usize] = self.keys.len() as u32;
            self.text.push_str(name);
            self.starts.push(self.text.len() as u32);
            self.keys.push(id_key(name));
        }
        places
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn users(&self) -> usize {
        self.users
    }

    pub(super) fn get(&self, place: usize) -> &str {
        &self.text[self.starts[place] as usize..self.starts[place + 1] as usize]
    }

    pub(super) fn key(&self, place: usize) -> u64 {
        self.keys[place]
    }

    pub(super) fn find(&self, side: Side, id: &str) -> Option<usize> {
        let (mut low, mut high) = match side {
            Side::User => (0, self.users),
            Side::Item => (self.users, self.len()),
        };
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle).cmp(id) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// The numbers of all ids, in the order of their text.
fn in_order(ids: &Ids) -> Vec<u32> {
    // Sixteen bytes behind what all have in common decide nearly every comparison without a look at the texts.
    let first = ids.names().next().unwrap_or_default().as_bytes();
    let shared = ids.names().fold(first.len(), |shared, name| {
        let same = |(a, b): &(&u8, &u8)| a == b;
        let pairs = name.as_bytes().iter().zip(&first[..shared]);
        pairs.take_while(same).count()
    });
    let mut order: Vec<(u128, u32)> = (0..)
        .zip(ids.names())
        .map(|(number, name)| {
            let mut head = [0; 16];
            let rest = &name.as_bytes()[shared..];
            let taken = rest.len().min(head.len());
            head[..taken].copy_from_slice(&rest[..taken]);
            (u128::from_be_bytes(head), number)
        })
        .collect();
    order.sort_unstable_by(|a, b| {
        let by_text = || ids.name(a.1).cmp(ids.name(b.1));
        a.0.cmp(&b.0).then_with(by_text)
    });
    order.into_iter().map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_in_the_order_of_their_bytes_however_alike_they_begin() {
        let mut ids = Ids::default();
        let given = [
            "user_00000000000000000002",
            "user_",
            "user_00000000000000000001",
            "user_\0",
            "user_0000000000000000",
            "user_0000000000000000\0",
            "user_ü",
            "user_9",
        ];
        for id in given {
            ids.intern(id).unwrap();
        }
        let found: Vec<&str> = in_order(&ids)
            .into_iter()
            .map(|number| ids.name(number))
            .collect();
        let mut expected = given.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(in_order(&Ids::default()).is_empty());
    }
}
