/** What the processes of the proxy suite say to each other, and what all of them know. */

export const PROVIDER_KEY = 'sk-the-key-of-the-fake-provider';

/** A paced stream: its head at once, its first event a little later, and the others at a distance. */
export const FIRST_EVENT_AFTER_MS = 2;
export const EVENT_EVERY_MS = 10;
export const EVENTS = 5;

/** How a contestant wants to be asked. */
export interface Address {
  readonly port: number;
  readonly target: string;
  /** Beside the body's, and the signature. */
  readonly headers: readonly (readonly [name: string, value: string])[];
  /** By the device that was enrolled there; `null` where nothing is signed. */
  readonly signFor: string | null;
}

export interface Slice {
  readonly address: Address;
  readonly body: 'plain' | 'stream';
  readonly requests: number;
  readonly connections: number;
}

export interface SliceReport {
  readonly perSecond: number;
  /** From the request to the end of a plain answer, or to the first byte of a stream's body. */
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export type LoadOrder =
  /** Enrolls a device; its key never leaves the process of the load. */
  | { readonly enroll: { readonly origin: string; readonly code: string } }
  /** Asks once for each kind of body, and looks at what comes. */
  | { readonly check: Address }
  | { readonly slice: Slice };
