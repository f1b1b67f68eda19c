CREATE TABLE sequence_runs (
    id BIGINT NOT NULL AUTO_INCREMENT,
    uid CHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    sequence VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    step VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    status VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    data JSON NOT NULL,
    format SMALLINT NOT NULL,
    `key` VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    active_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    options JSON,
    queue VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    attempt INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    waits INTEGER NOT NULL,
    version BIGINT NOT NULL,
    worker_id VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    pid INTEGER,
    due_at DATETIME(6),
    published_at DATETIME(6),
    error MEDIUMTEXT CHARACTER SET utf8mb4,
    created_at DATETIME(6) NOT NULL,
    started_at DATETIME(6),
    step_started_at DATETIME(6),
    updated_at DATETIME(6) NOT NULL,
    finished_at DATETIME(6),
    CONSTRAINT pk_sequence_runs PRIMARY KEY (id)
);

CREATE INDEX ix_sequence_runs_due ON sequence_runs (status, queue, due_at);

CREATE INDEX ix_sequence_runs_finished ON sequence_runs (format, finished_at);

CREATE INDEX ix_sequence_runs_running ON sequence_runs (status, worker_id);

CREATE INDEX ix_sequence_runs_sequence ON sequence_runs (status, sequence, id);

CREATE INDEX ix_sequence_runs_status ON sequence_runs (status, id);

CREATE UNIQUE INDEX uq_sequence_runs_key ON sequence_runs (sequence, active_key);

CREATE TABLE sequence_step_runs (
    id BIGINT NOT NULL AUTO_INCREMENT,
    run_id BIGINT NOT NULL,
    step VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    worker VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    started_at DATETIME(6),
    finished_at DATETIME(6) NOT NULL,
    error MEDIUMTEXT CHARACTER SET utf8mb4,
    traceback MEDIUMTEXT CHARACTER SET utf8mb4,
    CONSTRAINT pk_sequence_step_runs PRIMARY KEY (id),
    CONSTRAINT uq_sequence_step_runs_run UNIQUE (run_id, id),
    CONSTRAINT fk_sequence_step_runs_run_id FOREIGN KEY(run_id) REFERENCES sequence_runs (id) ON DELETE CASCADE
);

CREATE TABLE sequence_workers (
    id VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    host VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    pid INTEGER NOT NULL,
    started_at DATETIME(6) NOT NULL,
    seen_until DATETIME(6) NOT NULL,
    queues MEDIUMTEXT CHARACTER SET utf8mb4,
    place VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    CONSTRAINT pk_sequence_workers PRIMARY KEY (id)
);
