//! Owns huge pages that the host lends for a run: adds them to the pool of 2 MiB pages and puts the
//! size of the pool back. Never takes pages that somebody else reserved.

use std::fs;
use std::path::{Path, PathBuf};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The pool, with enough free pages for as long as this lives.
#[derive(Debug)]
pub(super) struct Pool {
    folder: PathBuf,
    before: Option<u64>,
}

impl Pool {
    /// Sees to `pages` free pages of 2 MiB; `None` where the host has none to lend.
    pub(super) fn with(pages: u64) -> Option<Self> {
        Self::at(Path::new(POOL), pages)
    }

    fn at(folder: &Path, pages: u64) -> Option<Self> {
        let mut pool = Self {
            folder: folder.to_owned(),
            before: None,
        };
        // Pages that are reserved and not taken yet count as free.
        let free = || {
            let reserved = pool.figure("resv_hugepages")?;
            Some(pool.figure("free_hugepages")?.saturating_sub(reserved))
        };
        let (total, have) = (pool.figure("nr_hugepages")?, free()?);
        if have >= pages {
            return Some(pool);
        }
        let wanted = total.saturating_add(pages.saturating_sub(have));
        fs::write(folder.join("nr_hugepages"), wanted.to_string()).ok()?;
        let got = free();
        // From here on dropping it puts the size back, also where it was not enough.
        pool.before = Some(total);
        (got? >= pages).then_some(pool)
    }

    fn figure(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(total) = self.before
            && let Err(error) = fs::write(self.folder.join("nr_hugepages"), total.to_string())
        {
            log::warn!("cannot put the pool of huge pages back to {total}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(total: u64, free: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, figure) in [
            ("nr_hugepages", total),
            ("free_hugepages", free),
            ("resv_hugepages", 1),
        ] {
            fs::write(folder.path().join(name), format!("{figure}\n")).unwrap();
        }
        folder
    }

    fn total(folder: &tempfile::TempDir) -> String {
        fs::read_to_string(folder.path().join("nr_hugepages")).unwrap()
    }

    #[test]
    fn a_pool_with_enough_free_pages_is_left_alone() {
        let folder = pool(8, 5);
        assert!(Pool::at(folder.path(), 4).is_some());
        assert_eq!(total(&folder), "8\n");
    }

    #[test]
    fn a_host_that_lends_nothing_gets_its_size_back() {
        // The file takes any size and the free pages do not follow, as on a host without memory.
        let folder = pool(8, 5);
        assert!(Pool::at(folder.path(), 6).is_none());
        assert_eq!(total(&folder), "8");
    }

    #[test]
    fn a_host_without_the_pool_has_none() {
        assert!(Pool::at(Path::new("/nonexistent"), 1).is_none());
    }
}
