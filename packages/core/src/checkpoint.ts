/**
 * Checkpoints: what a log says of itself at one moment (its origin, its size, the root of its tree), signed as C2SP's
 * tlog-checkpoint in a signed note, so that any tool for such notes can read them.
 *
 * A checkpoint shows a change, a loss or a fork only to someone who kept it where the log's own writers cannot reach it. This
 * room keeps none, holds no private key, and does not compare checkpoints: `merkle` does.
 *
 * @see https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note, docs/spec/audit.md section 7
 */
import { isOrigin } from './audit.ts';
import { concat, equalBytes, fromBase64, fromUtf8, toBase64, utf8 } from './bytes.ts';
import { RejectedError, UnavailableError, UsageError } from './errors.ts';
import type { Bytes, CheckpointSigner } from './seams.ts';

export { readRestore, restoreEntry, type AcknowledgedRestore } from './audit-restore.ts';

const ED25519 = 'Ed25519';
// The type byte of Ed25519 in a key's data.
const ED25519_TYPE = 1;
const KEY_BYTES = 32;
const KEY_HASH_BYTES = 4;
const SIGNATURE_BYTES = 64;
const ROOT_BYTES = 32;
const MAC_BYTES = 32;
const MAX_NOTE_CHARACTERS = 65_536;
const MAX_SIGNATURES = 100;

const SIZE_TEXT = /^(?:0|[1-9][0-9]{0,15})$/;
const VERIFIER_KEY = /^([^+]*)\+([0-9a-f]{8})\+(.*)$/;
// What may name a key that is not ours, as the signed note has it.
const KEY_NAME = /^[^\p{White_Space}+]+$/u;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\0-\x1f]/;
const SIGNATURE_PREFIX = '— ';
const HEAD_MAC_PREFIX = 'keyguard-head-mac ';

/** What a log says of itself. */
export interface Checkpoint {
  /** The name of the chain, and of the key that signs: 1 to 255 printable ASCII characters, without space and `+`. */
  readonly origin: string;
  /** How many entries the log has, from 0 to 2⁵³ − 1. */
  readonly size: number;
  /** The root of the tree over them, 32 bytes. */
  readonly root: Bytes;
  /** Further lines, each of one character at least and without control characters; usually none or one. */
  readonly extensions: readonly string[];
}

/** A public key that signs checkpoints, ready for use. Trusted: it MUST have come another way than the checkpoints. */
export interface CheckpointVerifier {
  readonly name: string;
  /** The first four bytes of a hash over name and key: says which key a signature claims to be by. */
  readonly keyHash: Bytes;
  /**
   * Whether the key made this Ed25519 signature (64 bytes, untrusted) over `data`. MUST answer `false`, not throw, for any that it
   * did not.
   */
  verify(data: Bytes, signature: Bytes): Promise<boolean>;
}

const isWellFormed = (text: string): boolean => fromUtf8(utf8(text)) === text;

async function keyHash(name: string, keyData: Bytes, crypto: Crypto): Promise<Bytes> {
  const hash = await crypto.subtle.digest('SHA-256', concat(utf8(`${name}\n`), keyData));
  return new Uint8Array(hash, 0, KEY_HASH_BYTES).slice();
}

const toHex = (bytes: Bytes): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

function keyDataOf(publicKey: Bytes): Bytes {
  if (publicKey.length !== KEY_BYTES) throw new UsageError('invalid_option', 'An Ed25519 public key has 32 bytes.');
  return concat(Uint8Array.of(ED25519_TYPE), publicKey);
}

function checkOrigin(origin: string): void {
  if (!isOrigin(origin)) {
    throw new UsageError('invalid_option', 'An origin is 1 to 255 printable ASCII characters, without space and "+".');
  }
}

/**
 * The text by which auditors know the key of a log: `<origin>+<key hash>+<base64 of type and key>`. It is public, and they MUST
 * get it another way than the checkpoints.
 * @throws UsageError `invalid_option`
 */
export async function verifierKey(origin: string, publicKey: Bytes, crypto: Crypto = globalThis.crypto): Promise<string> {
  checkOrigin(origin);
  const keyData = keyDataOf(publicKey);
  return `${origin}+${toHex(await keyHash(origin, keyData, crypto))}+${toBase64(keyData)}`;
}

/**
 * The key that a {@link verifierKey} stands for.
 * @param text trusted, and still checked in every character: a typing error must not become another key
 * @throws UsageError `invalid_option`
 */
export async function checkpointVerifier(text: string, crypto: Crypto = globalThis.crypto): Promise<CheckpointVerifier> {
  const [, name = '', hash = '', key = ''] = VERIFIER_KEY.exec(text) ?? [];
  const keyData = fromBase64(key);
  if (!KEY_NAME.test(name) || !isWellFormed(name) || CONTROL.test(name) || keyData === null) {
    throw new UsageError('invalid_option', 'A verifier key is <name>+<hash>+<base64>.');
  }
  if (keyData[0] !== ED25519_TYPE || keyData.length !== 1 + KEY_BYTES) {
    throw new UsageError('invalid_option', 'The verifier key is not one of Ed25519.');
  }
  const expected = await keyHash(name, keyData, crypto);
  if (toHex(expected) !== hash) throw new UsageError('invalid_option', 'The hash of the verifier key is wrong.');
  const imported = await crypto.subtle.importKey('raw', keyData.slice(1), ED25519, false, ['verify']).catch((cause: unknown) => {
    throw new UsageError('invalid_option', 'The verifier key is not a key, or this platform has no Ed25519.', { cause });
  });
  return {
    name,
    keyHash: expected,
    verify: (data: Bytes, signature: Bytes): Promise<boolean> => crypto.subtle.verify(ED25519, imported, signature, data),
  };
}

/**
 * The text that is signed: origin, size, root and extensions, each ending in a line feed.
 * @throws UsageError `invalid_option` for a part that cannot be written
 */
export function checkpointText(checkpoint: Checkpoint): string {
  const { origin, size, root, extensions } = checkpoint;
  checkOrigin(origin);
  if (!Number.isSafeInteger(size) || size < 0) throw new UsageError('invalid_option', 'size must be an integer from 0 to 2^53 - 1.');
  if (root.length !== ROOT_BYTES) throw new UsageError('invalid_option', 'root has 32 bytes.');
  if (!extensions.every((line) => line !== '' && !CONTROL.test(line) && isWellFormed(line))) {
    throw new UsageError('invalid_option', 'An extension is a line of text, and not empty.');
  }
  return [origin, String(size), toBase64(root), ...extensions].map((line) => `${line}\n`).join('');
}

/**
 * `checkpoint` as a signed note, by the key of its own log: what is published, and kept elsewhere.
 *
 * Sign only what is durable: a checkpoint that a crash or a restore takes back reads as a loss for ever.
 * @throws UsageError `invalid_option` as {@link checkpointText}
 * @throws UnavailableError where the signer answers with what is no signature by its key, and as it throws
 */
export async function signCheckpoint(
  checkpoint: Checkpoint,
  signer: CheckpointSigner,
  crypto: Crypto = globalThis.crypto,
): Promise<string> {
  const text = checkpointText(checkpoint);
  const verifier = await checkpointVerifier(await verifierKey(checkpoint.origin, signer.publicKey, crypto), crypto);
  const data = utf8(text);
  const signature: unknown = await signer.sign(data);
  const isSignature = signature instanceof Uint8Array && signature.length === SIGNATURE_BYTES;
  if (!isSignature || !(await verifier.verify(data, signature as Bytes))) {
    throw new UnavailableError('checkpoint_signer', 'The signer did not answer with a signature by its key.');
  }
  const note = `${text}\n${SIGNATURE_PREFIX}${checkpoint.origin} ${toBase64(concat(verifier.keyHash, signature))}\n`;
  if (note.length > MAX_NOTE_CHARACTERS) throw new UsageError('invalid_option', 'The checkpoint is too long.');
  return note;
}

function invalid(detail: string): RejectedError {
  return new RejectedError('checkpoint_invalid', 'A checkpoint does not verify.', { detail });
}

interface NoteSignature {
  readonly name: string;
  readonly keyHash: Bytes;
  readonly signature: Bytes;
}

function parseSignature(line: string): NoteSignature {
  if (!line.startsWith(SIGNATURE_PREFIX)) throw invalid('not a signature line');
  const space = line.indexOf(' ', SIGNATURE_PREFIX.length);
  const name = line.slice(SIGNATURE_PREFIX.length, space);
  const bytes = space === -1 ? null : fromBase64(line.slice(space + 1));
  if (bytes === null || bytes.length <= KEY_HASH_BYTES || !KEY_NAME.test(name)) throw invalid('not a signature line');
  return { name, keyHash: bytes.slice(0, KEY_HASH_BYTES), signature: bytes.slice(KEY_HASH_BYTES) };
}

function parseNote(note: string): { text: string; signatures: readonly NoteSignature[] } {
  if (typeof note !== 'string' || note.length > MAX_NOTE_CHARACTERS) throw invalid('not a note, or too long');
  if (!isWellFormed(note) || CONTROL.test(note.replaceAll('\n', ''))) throw invalid('not a text');
  const blank = note.lastIndexOf('\n\n');
  const block = note.slice(blank + 2);
  if (blank === -1 || !block.endsWith('\n')) throw invalid('no signatures after a blank line');
  const lines = block.slice(0, -1).split('\n');
  if (lines.length > MAX_SIGNATURES) throw invalid('too many signatures');
  const signatures = lines.map(parseSignature);
  const keys = new Set(signatures.map(({ name, keyHash: hash }) => `${name} ${toHex(hash)}`));
  if (keys.size !== signatures.length) throw invalid('two signatures by one key');
  return { text: note.slice(0, blank + 1), signatures };
}

function parseText(text: string): Checkpoint {
  const [origin = '', size = '', rootText = '', ...extensions] = text.slice(0, -1).split('\n');
  if (!isOrigin(origin)) throw invalid('no origin');
  if (!SIZE_TEXT.test(size) || !Number.isSafeInteger(Number(size))) throw invalid('no size');
  const root = fromBase64(rootText);
  if (root === null || root.length !== ROOT_BYTES) throw invalid('no root');
  if (extensions.includes('')) throw invalid('an empty line');
  return { origin, size: Number(size), root, extensions };
}

/**
 * What `note` says, if and only if the key of its own log signed it. Signatures by keys that are not given are ignored; by those
 * that are given, every one must be right, and one of them must bear the name of the checkpoint's origin.
 *
 * Does not say whether it is the newest, nor whether it is true: compare it with the log.
 * @param note untrusted. Takes time in proportion to its length
 * @param verifiers trusted. To accept the checkpoints of one log only, give its keys only
 * @throws RejectedError `checkpoint_invalid`
 * @throws UsageError `invalid_option` where two of the verifiers have one name and one key hash
 */
export async function verifyCheckpoint(note: string, verifiers: readonly CheckpointVerifier[]): Promise<Checkpoint> {
  const { text, signatures } = parseNote(note);
  const data = utf8(text);
  const signers = new Set<string>();
  for (const { name, keyHash: hash, signature } of signatures) {
    const [verifier, ...others] = verifiers.filter((known) => known.name === name && equalBytes(known.keyHash, hash));
    if (verifier === undefined) continue;
    if (others.length > 0) throw new UsageError('invalid_option', 'Two verifiers have one name and one key hash.');
    if (signature.length !== SIGNATURE_BYTES || !(await verifier.verify(data, signature))) throw invalid('a signature is wrong');
    signers.add(name);
  }
  if (signers.size === 0) throw invalid('no known key signed it');
  const checkpoint = parseText(text);
  if (!signers.has(checkpoint.origin)) throw invalid('no known key of that origin signed it');
  return checkpoint;
}

/** What an audit chain says of itself at one moment. */
export interface AuditCheckpointParts {
  readonly origin: string;
  /** How many records the chain has, from 0 to 2⁵³ − 1. */
  readonly size: number;
  readonly root: Bytes;
  /** The MAC of the last of the `size` records; 32 zero bytes where there is none. */
  readonly headMac: Bytes;
}

/**
 * The checkpoint of an audit chain: with one extension line, which holds the MAC of its last record.
 * @throws UsageError `invalid_option` for a MAC of another length
 */
export function auditCheckpoint({ origin, size, root, headMac }: AuditCheckpointParts): Checkpoint {
  if (headMac.length !== MAC_BYTES) throw new UsageError('invalid_option', 'A MAC has 32 bytes.');
  return { origin, size, root, extensions: [`${HEAD_MAC_PREFIX}${toBase64(headMac)}`] };
}

/**
 * The MAC that {@link auditCheckpoint} wrote into a checkpoint, or `null` where there is no such line.
 * @throws RejectedError `checkpoint_invalid` for more than one such line, and for one that holds no MAC
 */
export function headMacOf({ extensions }: Checkpoint): Bytes | null {
  const [line, ...others] = extensions.filter((extension) => extension.startsWith(HEAD_MAC_PREFIX));
  if (line === undefined) return null;
  const mac = fromBase64(line.slice(HEAD_MAC_PREFIX.length));
  if (others.length > 0 || mac === null || mac.length !== MAC_BYTES) throw invalid('no head MAC');
  return mac;
}
