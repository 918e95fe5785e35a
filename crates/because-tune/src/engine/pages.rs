/// Which pages of the key-value cache are in use, by how many rows, and which the prefix cache keeps.
///
/// A page is free, or counted: once for each row that reads it and once if it is kept.
#[derive(Debug)]
pub(super) struct PagePool {
    counts: Vec<u32>,
    kept: Vec<bool>,
    free: Vec<u32>,
    idle: usize,
}

impl PagePool {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            counts: vec![0; pages],
            kept: vec![false; pages],
            // The first page on top: memory that was touched is used again first.
            free: (0..pages as u32).rev().collect(),
            idle: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Pages that rows could have: free ones, and those only the prefix cache holds.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle
    }

    /// Pages in use by rows.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.len() - self.available()
    }

    /// A free page for one row.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.counts[page as usize] = 1;
        Some(page)
    }

    /// One more row reads a page.
    pub(super) fn share(&mut self, page: u32) {
        if self.is_idle(page) {
            self.idle -= 1;
        }
        self.counts[page as usize] += 1;
    }

    /// A row no longer reads a page.
    pub(super) fn release(&mut self, page: u32) {
        self.counts[page as usize] -= 1;
        if self.is_idle(page) {
            self.idle += 1;
        } else if self.counts[page as usize] == 0 {
            self.free.push(page);
        }
    }

    /// The prefix cache keeps a page that a row has.
    pub(super) fn keep(&mut self, page: u32) {
        self.kept[page as usize] = true;
        self.counts[page as usize] += 1;
    }

    /// Whether the prefix cache alone holds a page.
    pub(super) fn is_idle(&self, page: u32) -> bool {
        self.kept[page as usize] && self.counts[page as usize] == 1
    }

    /// The prefix cache lets go of an idle page.
    pub(super) fn drop_idle(&mut self, page: u32) {
        self.kept[page as usize] = false;
        self.counts[page as usize] = 0;
        self.idle -= 1;
        self.free.push(page);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against plain sets: no page is given out twice, and none is lost.
        #[test]
        fn every_page_is_free_or_counted(steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 1..200)) {
            let mut pool = PagePool::new(6);
            let (mut readers, mut kept) = (vec![0u32; 6], [false; 6]);
            for (what, which) in steps {
                let held: Vec<u32> = (0..6).filter(|&page| readers[page as usize] > 0).collect();
                let any = if held.is_empty() { 0 } else { *which.get(&held[..]) };
                match what {
                    0 => {
                        let free = (0..6).filter(|&page| readers[page] == 0 && !kept[page]).count();
                        match pool.take() {
                            Some(page) => {
                                prop_assert!(readers[page as usize] == 0 && !kept[page as usize]);
                                readers[page as usize] = 1;
                            }
                            None => prop_assert_eq!(free, 0),
                        }
                    }
                    1 => {
                        let page = which.index(6);
                        if readers[page] > 0 || kept[page] {
                            pool.share(page as u32);
                            readers[page] += 1;
                        }
                    }
                    2 if !held.is_empty() => {
                        pool.release(any);
                        readers[any as usize] -= 1;
                    }
                    3 if !held.is_empty() && !kept[any as usize] => {
                        pool.keep(any);
                        kept[any as usize] = true;
                    }
                    4 => {
                        let idle = (0..6).find(|&page| pool.is_idle(page));
                        if let Some(page) = idle {
                            prop_assert!(readers[page as usize] == 0 && kept[page as usize]);
                            pool.drop_idle(page);
                            kept[page as usize] = false;
                        }
                    }
                    _ => {}
                }
                let used = readers.iter().filter(|&&readers| readers > 0).count();
                prop_assert_eq!(pool.in_use(), used);
                prop_assert_eq!(pool.available(), 6 - used);
            }
        }
    }
}
