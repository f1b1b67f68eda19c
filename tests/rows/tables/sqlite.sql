CREATE TABLE sequence_runs (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    uid CHAR(32) NOT NULL,
    sequence VARCHAR(255) NOT NULL,
    step VARCHAR(255) NOT NULL,
    status VARCHAR(16) NOT NULL,
    data JSON NOT NULL,
    format SMALLINT NOT NULL,
    "key" VARCHAR(255),
    active_key VARCHAR(255),
    options JSON,
    queue VARCHAR(255) NOT NULL,
    attempt INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    waits INTEGER NOT NULL,
    version BIGINT NOT NULL,
    worker_id VARCHAR(32),
    pid INTEGER,
    due_at DATETIME,
    published_at DATETIME,
    error TEXT,
    created_at DATETIME NOT NULL,
    started_at DATETIME,
    step_started_at DATETIME,
    updated_at DATETIME NOT NULL,
    finished_at DATETIME
);

CREATE INDEX ix_sequence_runs_due ON sequence_runs (status, queue, due_at) WHERE status = 'waiting';

CREATE INDEX ix_sequence_runs_finished ON sequence_runs (format, finished_at) WHERE finished_at IS NOT NULL;

CREATE INDEX ix_sequence_runs_running ON sequence_runs (status, worker_id) WHERE status = 'running';

CREATE INDEX ix_sequence_runs_sequence ON sequence_runs (status, sequence, id);

CREATE INDEX ix_sequence_runs_status ON sequence_runs (status, id);

CREATE UNIQUE INDEX uq_sequence_runs_key ON sequence_runs (sequence, active_key) WHERE active_key IS NOT NULL;

CREATE TABLE sequence_step_runs (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    run_id INTEGER NOT NULL,
    step VARCHAR(255) NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR(16) NOT NULL,
    worker VARCHAR(255),
    started_at DATETIME,
    finished_at DATETIME NOT NULL,
    error TEXT,
    traceback TEXT,
    CONSTRAINT uq_sequence_step_runs_run UNIQUE (run_id, id),
    CONSTRAINT fk_sequence_step_runs_run_id FOREIGN KEY(run_id) REFERENCES sequence_runs (id) ON DELETE CASCADE
);

CREATE TABLE sequence_workers (
    id VARCHAR(32) NOT NULL,
    host VARCHAR(255) NOT NULL,
    pid INTEGER NOT NULL,
    started_at DATETIME NOT NULL,
    seen_until DATETIME NOT NULL,
    queues TEXT,
    place VARCHAR(255),
    CONSTRAINT pk_sequence_workers PRIMARY KEY (id)
);
