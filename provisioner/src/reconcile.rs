pub mod apply;
pub mod intent;
pub mod observe;
pub mod plan;
