//! How many calls may be under way. The bus keeps a place for each until it is answered, however long we wait for it ourselves, and
//! refuses every further call of ours when there are 128. So whoever does not answer gets no more than a few.

use std::collections::HashMap;

use super::limits;
use super::name::BUS;

#[derive(Debug, Default)]
pub struct Gate {
    under_way: HashMap<u32, Box<str>>,
    /// By whom they are to be answered.
    each: HashMap<Box<str>, usize>,
}

impl Gate {
    /// Whether a call to `destination` may be sent now.
    pub fn admits(&self, destination: &str) -> bool {
        let to_it = self.each.get(destination).copied().unwrap_or_default();
        destination == BUS || (self.under_way.len() < limits::UNDER_WAY && to_it < limits::UNDER_WAY_EACH)
    }

    pub fn sent(&mut self, id: u32, destination: &str) {
        // the bus answers at once
        if destination != BUS {
            *self.each.entry(destination.into()).or_default() += 1;
            self.under_way.insert(id, destination.into());
        }
    }

    pub fn holds(&self, id: u32) -> bool {
        self.under_way.contains_key(&id)
    }

    /// The answer has come, or the bus says that there will be none.
    pub fn answered(&mut self, id: u32) {
        let Some(destination) = self.under_way.remove(&id) else { return };
        if let Some(count) = self.each.get_mut(&destination) {
            *count -= 1;
            if *count == 0 {
                self.each.remove(&destination);
            }
        }
    }
}
