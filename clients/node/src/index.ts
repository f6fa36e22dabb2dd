/** Send to the Essay Lifecycle Service and receive its events: README.md says how. */

export type { Broker } from "./broker.js";
export { UnknownBroker } from "./broker.js";
export type { Draft } from "./draft.js";
export { manifestSha256 } from "./events.js";
export type { KnownEvent, ReceivedEvent, UnknownEvent } from "./events.js";
export { canonical, correlationId, eventId } from "./ids.js";
export { INBOX, once } from "./inbox.js";
export { NoEvent } from "./message.js";
export type * from "./models.js";
export { Receiver } from "./receiver.js";
export type { Delivery, ReceiverOptions } from "./receiver.js";
export { Sender } from "./sender.js";
export type { SenderOptions } from "./sender.js";
export { SpoolError, SpoolFull } from "./spool.js";
