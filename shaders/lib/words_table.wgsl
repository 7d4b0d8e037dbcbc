// 4-bit codes of a table of 16 numbers, sixty-four to a load.
import table_subgroup

alias Word = vec4<u64>;
