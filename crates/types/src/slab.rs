//! A bounded table whose keys carry a generation.

/// A key never finds the entry that took its entry's place.
#[derive(Clone, Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    capacity: u32,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub fn new(capacity: u32) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), capacity }
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.entries.len() >= self.capacity as usize
    }

    /// Errors: the value comes back when the slab is full.
    pub fn insert(&mut self, value: T) -> Result<u64, T> {
        if self.is_full() {
            return Err(value);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, value: None });
            u32::try_from(self.entries.len() - 1).expect("capacity is a u32")
        });
        let entry = &mut self.entries[index as usize];
        entry.value = Some(value);
        Ok(u64::from(entry.generation) << 32 | u64::from(index))
    }

    pub fn get(&self, key: u64) -> Option<&T> {
        let (index, generation) = split(key);
        self.entries.get(index).filter(|entry| entry.generation == generation)?.value.as_ref()
    }

    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let (index, generation) = split(key);
        self.entries.get_mut(index).filter(|entry| entry.generation == generation)?.value.as_mut()
    }

    pub fn remove(&mut self, key: u64) -> Option<T> {
        let (index, generation) = split(key);
        let entry = self.entries.get_mut(index).filter(|entry| entry.generation == generation)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(u32::try_from(index).expect("an index is a u32"));
        Some(value)
    }

    /// In the order of the places, with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| {
            let key = u64::from(entry.generation) << 32 | index as u64;
            entry.value.as_ref().map(|value| (key, value))
        })
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(index, entry)| {
            let key = u64::from(entry.generation) << 32 | index as u64;
            entry.value.as_mut().map(|value| (key, value))
        })
    }
}

fn split(key: u64) -> (usize, u32) {
    let index = usize::try_from(key & u64::from(u32::MAX)).expect("32 bits fit a usize");
    (index, u32::try_from(key >> 32).expect("32 bits fit a u32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_finds_nothing() {
        let mut slab = Slab::new(1);
        let first = slab.insert("a").unwrap();
        assert_eq!(slab.insert("b"), Err("b"));
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("c").unwrap();
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"c"));
        assert_eq!(slab.len(), 1);
    }
}
