// `npm run models` writes this file from docs/reference/schemas.

export type JsonValue =
  | string
  | number
  | boolean
  | null
  | JsonValue[]
  | { [name: string]: JsonValue };

/** The student of an essay. */
export interface Association {
  /** The essay. */
  essay_id: string;
  /** Its student; absent or null: unknown. */
  student_id?: string | null;
  /** How sure the match is. */
  confidence_score: number;
  /** Who confirmed it: a person, a timeout or a program. */
  validation_method: "human" | "timeout" | "auto";
  /** The person who confirmed it. */
  validated_by?: string | null;
  /** When it was confirmed. */
  validated_at: string;
}

/** A batch with a class id is regular, with or without an organisation. */
export type ClassType = "GUEST" | "REGULAR";

/** One stored text. */
export interface Content {
  /** Where the text is stored. A content of a batch is known by it. */
  text_storage_id: string;
  /** The upload of the file that the text comes from. */
  file_upload_id: string;
  /** The file's name as its owner gave it. */
  original_file_name: string;
  /** Where the file itself is stored. */
  raw_file_storage_id?: string | null;
  /** The size of the file. */
  file_size_bytes: number;
  /** A hash of the text; stored and not compared. */
  content_md5_hash?: string | null;
}

/** An essay that holds a content. */
export interface Essay {
  /** The essay. */
  essay_id: string;
  /** Where its text is stored. */
  text_storage_id: string;
  /** The upload of its file. */
  file_upload_id: string;
  /** The file's name as its owner gave it. */
  original_file_name: string;
}

/** Stands for a list of essays that would make the event larger than 512 KiB. */
export interface EssaysRef {
  /** The name of the list that is left out. */
  field: string;
  /** The length of that list. */
  total: number;
  /** The first 1 000 essays, or as many as fit. */
  first: (ReadyEssay | FailedEssay)[];
  /**
   * The address of the read API that lists all of them: `/v1/batches/{id}/essays?state=…`; with
   * `&after=` and the last id of `first` it lists the rest.
   */
  rest: string;
}

/** An essay without a content: its file was rejected, or never came. */
export interface FailedEssay {
  /** The essay. */
  essay_id: string;
  /** Why the file was rejected; absent: no file came before the deadline. */
  validation_error_code?:
    | "EMPTY_CONTENT"
    | "CONTENT_TOO_SHORT"
    | "CONTENT_TOO_LONG"
    | "RAW_STORAGE_FAILED"
    | "TEXT_EXTRACTION_FAILED"
    | "ENCRYPTED_FILE_UNSUPPORTED"
    | "UNKNOWN_VALIDATION_ERROR";
  /** What the file service said about it. */
  validation_error_detail?: Record<string, JsonValue>;
  /** When the rejection took the slot. */
  failed_at?: string;
  /** The upload of the rejected file. */
  file_upload_id?: string;
  /** The file's name as its owner gave it. */
  original_file_name?: string;
}

/** Stands for an object of the sender's that is too large for the event. */
export interface ObjectRef {
  /** The object's size as canonical JSON. */
  bytes: number;
  /** Where to read it. */
  rest: string;
}

/** What to do with a batch whose deadline passes. */
export type OnDeadline = "fail" | "proceed";

/** An essay for the pipeline. */
export interface ReadyEssay {
  /** The essay. */
  essay_id: string;
  /** Where its text is stored. */
  text_storage_id: string;
  /** The upload of its file. */
  file_upload_id: string;
  /** The file's name as its owner gave it. */
  original_file_name: string;
  /** Its student; absent: unknown, or a guest batch. */
  student_id?: string;
}

/**
 * The orchestrator changes a batch that is not sealed yet. It names one field at least. The
 * event of els.amend_batch, at most 262144 bytes of canonical JSON.
 */
export interface BatchAmended {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** Where the students' task is from now on; `BatchEssaysReady` carries it. */
  student_prompt_ref?: Record<string, JsonValue> | null;
  /** Seconds from now until the batch no longer waits; at most ten years. */
  deadline_s?: number | null;
  /** At the deadline: give the batch up, or go on without the essays that are missing. */
  on_deadline?: "fail" | "proceed" | null;
}

/**
 * The file service stored one text. The event of els.assign_content, at most 262144 bytes of
 * canonical JSON.
 */
export interface EssayContentProvisioned {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** Where the text is stored. A content of a batch is known by it. */
  text_storage_id: string;
  /** The upload of the file that the text comes from. */
  file_upload_id: string;
  /** The file's name as its owner gave it. */
  original_file_name: string;
  /** Where the file itself is stored. */
  raw_file_storage_id?: string | null;
  /** The size of the file. */
  file_size_bytes: number;
  /** A hash of the text; stored and not compared. */
  content_md5_hash?: string | null;
}

/**
 * The file service stored the texts of one upload. The event of els.assign_contents, at most
 * 8388608 bytes of canonical JSON.
 */
export interface BatchContentsProvisioned {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** The texts. */
  contents: Content[];
}

/**
 * The orchestrator gives the batch up. The event of els.cancel_batch, at most 262144 bytes of
 * canonical JSON.
 */
export interface BatchCancelled {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** Why; the event repeats it. */
  reason: string;
}

/**
 * A teacher, or a timeout, confirmed the students of a batch. The event of
 * els.confirm_students, at most 8388608 bytes of canonical JSON.
 */
export interface StudentAssociationsConfirmed {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** The class of the registration, to the letter. */
  class_id: string;
  /** Whose essays they are; each essay once. An essay that is absent has no student. */
  associations: Association[];
  /** A timeout confirmed them, and not a person. */
  timeout_triggered: boolean;
}

/**
 * The orchestrator expects these essays. A batch without `class_id` is a guest batch. The event
 * of els.register_batch, at most 8388608 bytes of canonical JSON.
 */
export interface BatchEssaysRegistered {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** The essays that are expected, each once; their bytewise order is the order of the slots. */
  essay_ids: string[];
  /** The number of `essay_ids`. */
  expected_essay_count: number;
  /** The course, as the events repeat it. */
  course_code: string;
  /** The language of the course, as the events repeat it. */
  course_language?: string | null;
  /** The teacher. */
  user_id: string;
  /** The teacher's organisation. */
  org_id?: string | null;
  /**
   * The class. Absent: a guest batch, which is ready once it is complete. Present: a regular
   * one, which then waits for `els.confirm_students`.
   */
  class_id?: string | null;
  /** Where the students' task is; `BatchEssaysReady` carries it. */
  student_prompt_ref?: Record<string, JsonValue> | null;
  /** Seconds from the registration until the batch no longer waits; at most ten years. */
  deadline_s?: number | null;
  /** At the deadline: give the batch up, or go on without the essays that are missing. */
  on_deadline?: "fail" | "proceed" | null;
  /** Anything of the sender's; the events carry it. */
  metadata?: Record<string, JsonValue> | null;
}

/**
 * The file service rejected a file; it consumes a slot. The event of els.reject_content, at
 * most 262144 bytes of canonical JSON.
 */
export interface EssayValidationFailed {
  /** The idempotency key: a repeat of the message has the same. */
  event_id: string;
  /** Every outgoing event of the batch carries the one of its registration. */
  correlation_id: string;
  /** When the sender wrote the event; a repeat may have another one. */
  timestamp: string;
  /** The version of these fields. */
  schema_version: number;
  /** The batch. */
  batch_id: string;
  /** The upload of the file. A rejected file of a batch is known by it. */
  file_upload_id: string;
  /** The file's name as its owner gave it. */
  original_file_name: string;
  /** Where the file itself is stored. */
  raw_file_storage_id?: string | null;
  /** Why the file is no essay. */
  validation_error_code:
    | "EMPTY_CONTENT"
    | "CONTENT_TOO_SHORT"
    | "CONTENT_TOO_LONG"
    | "RAW_STORAGE_FAILED"
    | "TEXT_EXTRACTION_FAILED"
    | "ENCRYPTED_FILE_UNSUPPORTED"
    | "UNKNOWN_VALIDATION_ERROR";
  /** What a person needs to mend the file. */
  validation_error_detail?: Record<string, JsonValue> | null;
  /** The size of the file. */
  file_size_bytes?: number | null;
}

/** What every event has. */
export interface CloudEvent<Type extends string> {
  /** Which event it is. */
  type: Type;
  /** The version of CloudEvents. */
  specversion: "1.0";
  /** The same at every delivery: drop repeats by it. */
  id: string;
  /** This service. */
  source: "urn:essay-lifecycle-service";
  /** The batch; `unknown` for a refused message that names none. */
  subject: string;
  /** When the event became true, in UTC. */
  time: string;
  /** The type of `data`. */
  datacontenttype: "application/json";
  /**
   * The number of the event in its batch, from 1 on. Of a refusal without a registered batch:
   * of its dead letter.
   */
  sequence: number;
  /**
   * The `correlation_id` of the batch's registration. Of a refusal without one: the message's,
   * or zeros.
   */
  correlationid: string;
  /** The span of the task that made the event true (W3C); only where traces are on. */
  traceparent?: string;
}

/** The batch was given up. Written once, when the batch is cancelled. */
export interface BatchCancelledEvent
  extends CloudEvent<"BatchCancelled"> {
  /** The batch was given up. */
  data: {
    /** The batch. */
    batch_id: string;
    /** As the sender wrote it. */
    reason: string;
  };
}

/** Every slot of the batch is accounted for. Written once, when every slot is accounted for. */
export interface BatchContentProvisioningCompletedEvent
  extends CloudEvent<"BatchContentProvisioningCompleted"> {
  /** Every slot of the batch is accounted for. */
  data: {
    /** The batch. */
    batch_id: string;
    /** In place of the list of essays, where that is too large. */
    essays_ref?: EssaysRef;
    /** `GUEST`: registered without a class. `REGULAR`: with one. */
    class_type: ClassType;
    /** As registered. */
    course_code: string;
    /** As registered. */
    course_language?: string;
    /** As registered. */
    user_id: string;
    /** As registered. */
    org_id?: string;
    /** As registered. */
    class_id?: string;
    /** As registered. */
    metadata?: Record<string, JsonValue>;
    /** The number of slots. */
    expected_count: number;
    /** The number of slots without a content. */
    failed_count: number;
    /** The digest of all essays with a content; see the rule of the manifest. */
    manifest_sha256: string;
    /** Present where the batch went on at a deadline, without some contents or students. */
    reason?: "DEADLINE_PASSED";
    /** By name, the objects of the sender's that are left out because they are too large. */
    objects_ref?: Record<string, ObjectRef>;
    /** The number of slots with a content. */
    provisioned_count: number;
    /** The essays with a content, in bytewise order of their ids. */
    essays?: Essay[];
  };
}

/**
 * The pipeline can start with the batch. Written once, with completion (guest batch) or when
 * the students are confirmed (regular batch); never if every slot failed.
 */
export interface BatchEssaysReadyEvent
  extends CloudEvent<"BatchEssaysReady"> {
  /** The pipeline can start with the batch. */
  data: {
    /** The batch. */
    batch_id: string;
    /** In place of the list of essays, where that is too large. */
    essays_ref?: EssaysRef;
    /** `GUEST`: registered without a class. `REGULAR`: with one. */
    class_type: ClassType;
    /** As registered. */
    course_code: string;
    /** As registered. */
    course_language?: string;
    /** As registered. */
    user_id: string;
    /** As registered. */
    org_id?: string;
    /** As registered. */
    class_id?: string;
    /** As registered. */
    metadata?: Record<string, JsonValue>;
    /** The number of slots. */
    expected_count: number;
    /** The number of slots without a content. */
    failed_count: number;
    /** The digest of all essays with a content; see the rule of the manifest. */
    manifest_sha256: string;
    /** Present where the batch went on at a deadline, without some contents or students. */
    reason?: "DEADLINE_PASSED";
    /** By name, the objects of the sender's that are left out because they are too large. */
    objects_ref?: Record<string, ObjectRef>;
    /** The number of essays for the pipeline. */
    ready_count: number;
    /** These essays, in bytewise order of their ids. */
    ready_essays?: ReadyEssay[];
    /** As registered. */
    student_prompt_ref?: Record<string, JsonValue>;
  };
}

/** The deadline passed before the batch was ready. Written once, when the deadline has passed. */
export interface BatchReadinessTimeoutEvent
  extends CloudEvent<"BatchReadinessTimeout"> {
  /** The deadline passed before the batch was ready. */
  data: {
    /** The batch. */
    batch_id: string;
    /** In place of the list of essays, where that is too large. */
    essays_ref?: EssaysRef;
    /** The number of slots. */
    expected_count: number;
    /** The number of slots with a content. */
    actual_count: number;
    /** The number of slots whose file was rejected. */
    failed_count: number;
    /** The number of slots for which nothing came. */
    missing_count: number;
    /** Their essays, at most 5 000. */
    missing_essay_ids: string[];
    /** The essays with a content, in bytewise order of their ids. */
    ready_essays?: ReadyEssay[];
    /**
     * Seconds since the registration, or since the batch was complete if it waited for
     * students.
     */
    waited_s: number;
    /** `fail`: the batch is closed. `proceed`: it goes on without what is missing. */
    on_deadline: OnDeadline;
  };
}

/** Some slots of a complete batch have no content. Written with completion, if a slot failed. */
export interface BatchValidationErrorsEvent
  extends CloudEvent<"BatchValidationErrors"> {
  /** Some slots of a complete batch have no content. */
  data: {
    /** The batch. */
    batch_id: string;
    /** In place of the list of essays, where that is too large. */
    essays_ref?: EssaysRef;
    /** These slots, in bytewise order of their essay ids. */
    failed_essays?: FailedEssay[];
    /** Their number. */
    total_errors: number;
    /** Their number by error code; `NOT_RECEIVED`: no file came before the deadline. */
    error_categories: Record<string, number>;
    /** No essay has a content. */
    critical_failure: boolean;
  };
}

/** A content has a slot. Written once for each content with a slot. */
export interface EssaySlotAssignedEvent
  extends CloudEvent<"EssaySlotAssigned"> {
  /** A content has a slot. */
  data: {
    /** The essay. */
    essay_id: string;
    /** Where its text is stored. */
    text_storage_id: string;
    /** The upload of its file. */
    file_upload_id: string;
    /** The file's name as its owner gave it. */
    original_file_name: string;
    /** The batch. */
    batch_id: string;
  };
}

/**
 * A content found every slot of its batch taken. Written once for each content that found every
 * slot taken.
 */
export interface ExcessContentProvisionedEvent
  extends CloudEvent<"ExcessContentProvisioned"> {
  /** A content found every slot of its batch taken. */
  data: {
    /** The batch. */
    batch_id: string;
    /** Where the text is stored. */
    text_storage_id: string;
    /** The upload of its file. */
    file_upload_id: string;
    /** The file's name as its owner gave it. */
    original_file_name: string;
    /** Why it has no slot. */
    reason: "NO_AVAILABLE_SLOT";
  };
}

/** A message became a dead letter, and changed nothing. Written with each dead letter. */
export interface MessageRefusedEvent
  extends CloudEvent<"MessageRefused"> {
  /** A message became a dead letter, and changed nothing. */
  data: {
    /** The number of the dead letter. */
    dead_letter: number;
    /** The task that the message calls, as its sender wrote it; `unknown` if it is no message. */
    task: string;
    /** The `event_id` of the message, where it has one. */
    event_id?: string;
    /** The batch that the message names; it need not be registered. */
    batch_id?: string;
    /** The `correlation_id` of the message, where it has one. */
    correlation_id?: string;
    /** Why; see the codes of dead letters. */
    code: string;
    /** Why, in words, without values of the body. */
    message: string;
  };
}

/** What each task takes. */
export interface Messages {
  "els.amend_batch": BatchAmended;
  "els.assign_content": EssayContentProvisioned;
  "els.assign_contents": BatchContentsProvisioned;
  "els.cancel_batch": BatchCancelled;
  "els.confirm_students": StudentAssociationsConfirmed;
  "els.register_batch": BatchEssaysRegistered;
  "els.reject_content": EssayValidationFailed;
}

/** The events, by type. */
export interface Events {
  "BatchCancelled": BatchCancelledEvent;
  "BatchContentProvisioningCompleted": BatchContentProvisioningCompletedEvent;
  "BatchEssaysReady": BatchEssaysReadyEvent;
  "BatchReadinessTimeout": BatchReadinessTimeoutEvent;
  "BatchValidationErrors": BatchValidationErrorsEvent;
  "EssaySlotAssigned": EssaySlotAssignedEvent;
  "ExcessContentProvisioned": ExcessContentProvisionedEvent;
  "MessageRefused": MessageRefusedEvent;
}
