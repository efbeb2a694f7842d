/**
 * Seams of the audit log: entries and records, the MAC, the log itself, its tree and its checkpoints. Types only.
 *
 * Reached by way of `@keyguard/core/seams`, where the rule for all of them stands.
 */
import type { Bytes, MaybePromise } from './seams-keys.ts';

/** What JSON can hold. Numbers are finite; text is Unicode. */
export type JsonValue = null | boolean | number | string | readonly JsonValue[] | { readonly [name: string]: JsonValue };

/** What happened, by whom, to what. `origin`, `seq` and `ts` are added by the chain and MUST NOT be given. */
export interface AuditEntry {
  readonly action: string;
  readonly outcome: 'success' | 'refused' | 'failed';
  /** Who acted, for instance `user:…`, `device:…` or `system`. */
  readonly actor: string;
  readonly [field: string]: JsonValue;
}

/** One link of the chain, in its final bytes. */
export interface AuditRecord {
  /** Its number in the chain, from 0 to 2⁵³ − 1. */
  readonly seq: number;
  /** RFC 8785 JSON of the entry with `origin`, `seq` and `ts`, as UTF-8. */
  readonly bytes: Bytes;
  readonly prevMac: Bytes;
  readonly mac: Bytes;
  readonly macKeyId: string;
  /** Set if and only if the record before has another `macKeyId`. MUST be stored and given back with the record. */
  readonly handover?: AuditHandover;
}

/** How the key of the records before vouches for the next one. */
export interface AuditHandover {
  /** The key of the record before. */
  readonly macKeyId: string;
  /** 32 bytes under that key, over the record with its own MAC and key id. */
  readonly mac: Bytes;
}

/** The ability to authenticate audit records with one key; the key itself stays inside. */
export interface AuditMacKey {
  readonly keyId: string;
  /** HMAC-SHA-256, 32 bytes. */
  mac(data: Bytes): MaybePromise<Bytes>;
}

/** An append-only log. `Tx` is the transaction handle of the store behind it. */
export interface AuditSink<Tx = never> {
  /**
   * Appends in order, without gaps, and MUST be durable when it resolves; otherwise it throws, and nothing was appended,
   * or all of it where the answer alone was lost. Answers with the records of `entries` only, also where a change of the MAC key was
   * recorded before them.
   */
  append(entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]>;
  /** Appends inside the caller's transaction: the entries exist if and only if it commits. */
  appendIn(tx: Tx, entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]>;
  /** The last record, or `null` of an empty log. */
  head(): Promise<AuditRecord | null>;
  /** All records from `fromSeq` on, in order. */
  read(fromSeq: number): AsyncIterable<AuditRecord>;
}

/** A complete subtree of a Merkle tree: the 2^level leaves from index · 2^level on. */
export interface SubtreePlace {
  /** Its height: 0 for a leaf. */
  readonly level: number;
  /** How many subtrees of that level stand before it. */
  readonly index: number;
}

/** A complete subtree and its hash, which never changes again. */
export interface Subtree extends SubtreePlace {
  /** 32 bytes. */
  readonly hash: Bytes;
}

/** Where the hashes of a tree's complete subtrees are kept. A tree only grows, so none of them ever changes. */
export interface SubtreeReader {
  /**
   * The hashes of these subtrees, in the order asked for. MUST throw when it does not have one of them. One call is made for
   * one proof, and `places` has at most about a hundred members: read them in one round trip.
   */
  read(places: readonly SubtreePlace[]): MaybePromise<readonly Bytes[]>;
}

/** The ability to sign checkpoints with one Ed25519 key. The private key itself never crosses this seam. */
export interface CheckpointSigner {
  /** 32 bytes, as RFC 8032 encodes them. */
  readonly publicKey: Bytes;
  /** Ed25519 (pure, without context) over `data`: 64 bytes. */
  sign(data: Bytes): MaybePromise<Bytes>;
}
