//! What the Rust programs of the matrix share. They are in this process, and answer for the same list of checks.

use std::sync::Arc;

use portcullis_tests::{Stack, Workspace, customer::Credentials};
use serde_json::json;

use super::report::{List, Report};

/// What a check works in.
pub struct Scene {
    pub list: List,
    pub workspace: Workspace,
    pub credentials: Credentials,
    /// `storage.` and the beginning of the names of the program's tables.
    pub prefix: String,
}

/// A Rust program of the matrix.
pub struct Tour {
    name: &'static str,
    pub scene: Arc<Scene>,
    report: Report,
}

impl Tour {
    pub async fn start(name: &'static str, version: &str) -> Tour {
        let workspace = Stack::shared().await.filled().await;
        let credentials = workspace.reveal("customer_db").await;
        let prefix = format!("storage.{}", name.replace('-', "_"));
        let scene = Arc::new(Scene { list: List::read(), workspace, credentials, prefix });
        let mut report = Report::default();
        report.line(&json!({"driver": name, "version": version}).to_string());
        Tour { name, scene, report }
    }

    /// Runs a check in a task of its own: what panics in it has failed, and the next one goes on.
    pub async fn check<F: Future<Output = ()> + 'static>(&mut self, name: &str, check: impl FnOnce(Arc<Scene>) -> F) {
        let task = tokio::time::timeout(super::LIMIT, check(self.scene.clone()));
        // On this thread: some of sqlx's futures are not seen to be Send.
        let local = tokio::task::LocalSet::new();
        let outcome = local.run_until(async { tokio::task::spawn_local(task).await }).await;
        let line = match outcome {
            Ok(Ok(())) => json!({"check": name, "result": "ok"}),
            Ok(Err(_)) => json!({"check": name, "result": "failed", "why": "it hangs"}),
            Err(panicked) => {
                let panic = panicked.into_panic();
                let told = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
                json!({"check": name, "result": "failed", "why": told.unwrap_or("it panicked")})
            }
        };
        self.report.line(&line.to_string());
    }

    pub fn not_applicable(&mut self, name: &str, why: &str) {
        self.report.line(&json!({"check": name, "result": "not applicable", "why": why}).to_string());
    }

    pub fn end(self) {
        self.report.settle(self.name, &self.scene.list);
    }
}

impl Scene {
    pub fn text(&self, name: &str) -> &str {
        &self.list.texts[name]
    }
}
