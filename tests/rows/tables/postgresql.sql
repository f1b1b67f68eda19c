CREATE TABLE sequence_runs (
    id BIGSERIAL NOT NULL,
    uid UUID NOT NULL,
    sequence VARCHAR(255) NOT NULL,
    step VARCHAR(255) NOT NULL,
    status VARCHAR(16) NOT NULL,
    data JSONB NOT NULL,
    format SMALLINT NOT NULL,
    key VARCHAR(255),
    active_key VARCHAR(255),
    options JSONB,
    queue VARCHAR(255) NOT NULL,
    attempt INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    waits INTEGER NOT NULL,
    version BIGINT NOT NULL,
    worker_id VARCHAR(32),
    pid INTEGER,
    due_at TIMESTAMP WITH TIME ZONE,
    published_at TIMESTAMP WITH TIME ZONE,
    error TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    step_started_at TIMESTAMP WITH TIME ZONE,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_sequence_runs PRIMARY KEY (id)
);

CREATE INDEX ix_sequence_runs_due ON sequence_runs (status, queue, due_at) WHERE status = 'waiting';

CREATE INDEX ix_sequence_runs_finished ON sequence_runs (format, finished_at) WHERE finished_at IS NOT NULL;

CREATE INDEX ix_sequence_runs_running ON sequence_runs (status, worker_id) WHERE status = 'running';

CREATE INDEX ix_sequence_runs_sequence ON sequence_runs (status, sequence, id);

CREATE INDEX ix_sequence_runs_status ON sequence_runs (status, id);

CREATE UNIQUE INDEX uq_sequence_runs_key ON sequence_runs (sequence, active_key) WHERE active_key IS NOT NULL;

CREATE TABLE sequence_step_runs (
    id BIGSERIAL NOT NULL,
    run_id BIGINT NOT NULL,
    step VARCHAR(255) NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR(16) NOT NULL,
    worker VARCHAR(255),
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE NOT NULL,
    error TEXT,
    traceback TEXT,
    CONSTRAINT pk_sequence_step_runs PRIMARY KEY (id),
    CONSTRAINT uq_sequence_step_runs_run UNIQUE (run_id, id),
    CONSTRAINT fk_sequence_step_runs_run_id FOREIGN KEY(run_id) REFERENCES sequence_runs (id) ON DELETE CASCADE
);

CREATE TABLE sequence_workers (
    id VARCHAR(32) NOT NULL,
    host VARCHAR(255) NOT NULL,
    pid INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    seen_until TIMESTAMP WITH TIME ZONE NOT NULL,
    queues TEXT,
    place VARCHAR(255),
    CONSTRAINT pk_sequence_workers PRIMARY KEY (id)
);
