//! Object stores: what is proven of them, and what becomes of requests.

mod probe;
