//! Attributes of operators: plain structs whose fields print as `key=value` and read back.

use std::collections::BTreeMap;

use crate::dyadic::Rounding;
use crate::elem::Elem;

/// A value that can stand after `key=`. Its text contains no white space.
pub(crate) trait AttributeValue: Sized {
    fn print(&self) -> String;
    fn read(text: &str) -> Option<Self>;
}

macro_rules! plain_attribute {
    ($($t:ty),*) => {$(
        impl AttributeValue for $t {
            fn print(&self) -> String { self.to_string() }
            fn read(text: &str) -> Option<Self> { text.parse().ok() }
        }
    )*};
}
plain_attribute!(usize, i32, i64, bool, Elem, Rounding);

impl AttributeValue for Vec<usize> {
    fn print(&self) -> String {
        let items: Vec<String> = self.iter().map(usize::to_string).collect();
        format!("[{}]", items.join(","))
    }
    fn read(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        if inner.is_empty() {
            return Some(Vec::new());
        }
        inner.split(',').map(|s| s.trim().parse().ok()).collect()
    }
}

impl<const N: usize> AttributeValue for [usize; N] {
    fn print(&self) -> String {
        self.to_vec().print()
    }
    fn read(text: &str) -> Option<Self> {
        Vec::<usize>::read(text)?.try_into().ok()
    }
}

/// The `key=value` pairs of one line of text, consumed by name.
pub(crate) struct Fields(pub BTreeMap<String, String>);

impl Fields {
    pub fn take<T: AttributeValue>(&mut self, key: &str) -> Result<T, String> {
        let text = self.0.remove(key).ok_or_else(|| format!("attribute `{key}` is missing"))?;
        T::read(&text).ok_or_else(|| format!("attribute `{key}`: cannot read `{text}`"))
    }

    pub fn finish(self) -> Result<(), String> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("unknown attribute `{key}`")),
        }
    }
}

/// Declares a struct of attributes together with its text form.
macro_rules! attributes {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $name {
            #[allow(clippy::vec_init_then_push, unused_mut, reason = "operators without attributes expand to nothing")]
            pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
                let mut out = Vec::new();
                $(out.push((stringify!($field), $crate::attributes::AttributeValue::print(&self.$field)));)*
                out
            }

            #[allow(unused_variables, reason = "operators without attributes expand to nothing")]
            pub(crate) fn from_fields(fields: &mut $crate::attributes::Fields) -> Result<Self, String> {
                Ok($name { $($field: fields.take(stringify!($field))?),* })
            }
        }
    };
}
pub(crate) use attributes;
