//! The linear layers and norms of a block: their places, and what files say of them.

/// Place of a linear layer in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinearId {
    /// Queries. [heads * head_dim, hidden]
    Q,
    /// Keys. [kv_heads * head_dim, hidden]
    K,
    /// Values. [kv_heads * head_dim, hidden]
    V,
    /// Queries, keys and values in one, in place of the three. [(heads + 2 * kv_heads) * head_dim, hidden]
    Qkv,
    /// What the attention gives, back to the residual stream. [hidden, heads * head_dim]
    O,
    /// The feed-forward part's gate. [intermediate, hidden]
    Gate,
    /// What the gate lets through. [intermediate, hidden]
    Up,
    /// Gate and up in one, in place of the two. [2 * intermediate, hidden]
    GateUp,
    /// Back to the residual stream. [hidden, intermediate]
    Down,
}

impl LinearId {
    /// In the order of a block.
    pub const ALL: &[LinearId] = &{
        use LinearId::*;
        [Q, K, V, Qkv, O, Gate, Up, GateUp, Down]
    };

    /// The input that it reads.
    pub const fn reads(self) -> Site {
        match self {
            LinearId::Q | LinearId::K | LinearId::V | LinearId::Qkv => Site::Qkv,
            LinearId::O => Site::O,
            LinearId::Gate | LinearId::Up | LinearId::GateUp => Site::GateUp,
            LinearId::Down => Site::Down,
        }
    }
}

/// The inputs that linear layers of a block share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// What queries, keys and values are made of.
    Qkv,
    /// What the attention gives.
    O,
    /// What gate and up read.
    GateUp,
    /// silu(gate) * up
    Down,
}

/// What makes an input of linear layers, row by row, so that a factor of one of its channels can be moved there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The weight of a norm.
    Norm(NormId),
    /// The rows of a linear layer, or those rows of the one that has them among others.
    Linear(LinearId),
}

impl Site {
    /// In the order of a block.
    pub const ALL: [Site; 4] = [Site::Qkv, Site::O, Site::GateUp, Site::Down];

    /// The linear layers that read it, in the order of a block; a family has some of them.
    pub const fn linears(self) -> &'static [LinearId] {
        match self {
            Site::Qkv => &[LinearId::Q, LinearId::K, LinearId::V, LinearId::Qkv],
            Site::O => &[LinearId::O],
            Site::GateUp => &[LinearId::Gate, LinearId::Up, LinearId::GateUp],
            Site::Down => &[LinearId::Down],
        }
    }

    /// What makes it: values make what the attention gives where every query head has values of its own.
    pub const fn maker(self) -> Maker {
        match self {
            Site::Qkv => Maker::Norm(NormId::Attention),
            Site::O => Maker::Linear(LinearId::V),
            Site::GateUp => Maker::Norm(NormId::FeedForward),
            Site::Down => Maker::Linear(LinearId::Up),
        }
    }
}

/// A linear layer as its family has it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    /// Its place.
    pub id: LinearId,
    /// Its module within a block, as transformers, PEFT and mlx-lm call it.
    pub name: &'static str,
    /// As GGUF files call it.
    pub gguf: &'static str,
    /// (out, in)
    pub shape: [usize; 2],
    /// Whether it has a bias.
    pub bias: bool,
    /// How its rows lie in a GGUF file.
    pub rows: Rows,
}

/// How the rows of a layer lie in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As in transformers.
    Own,
    /// In so many heads, the two rows of each rotated pair side by side, where transformers has them half a head apart.
    Rotated(usize),
}

/// Place of a norm in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormId {
    /// Before the attention.
    Attention,
    /// Of what the attention gives.
    AfterAttention,
    /// Before the feed-forward part.
    FeedForward,
    /// Of what the feed-forward part gives.
    AfterFeedForward,
    /// Of the queries, before they are rotated.
    Query,
    /// Of the keys, before they are rotated.
    Key,
}

impl NormId {
    /// All places.
    pub const ALL: [NormId; 6] = {
        use NormId::*;
        [Attention, AfterAttention, FeedForward, AfterFeedForward, Query, Key]
    };
}

/// A norm as its family has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Its place.
    pub id: NormId,
    /// Its module within a block, as transformers calls it.
    pub name: &'static str,
    /// As GGUF files call it.
    pub gguf: &'static str,
    /// Numbers that are normalized together, as many as its weight has: the hidden size, or the width of a head, each for itself.
    pub width: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_reads_the_input_that_lists_it() {
        let listed: Vec<_> =
            Site::ALL.into_iter().flat_map(|site| site.linears().iter().map(move |id| (*id, site))).collect();
        assert!(listed.iter().map(|(id, _)| *id).eq(LinearId::ALL.iter().copied()));
        assert!(listed.iter().all(|(id, site)| id.reads() == *site));
        assert!(LinearId::ALL.iter().enumerate().all(|(i, id)| *id as usize == i));
    }
}
