//! The PostgreSQL protocol 3.0/3.2 as values: bytes in, messages out. No I/O.
