/**
 * The keys of this deployment: each random, each for one purpose, each wrapped by the root in `kek_keys` and bound there to the
 * deployment, its purpose and its id. What leaves this room are abilities; bytes leave it only where a library demands them.
 *
 * The deployment's own id is one of them, so that a writer of the database cannot pass this deployment off as another.
 */
import { createHmac, createPrivateKey, createPublicKey, createSecretKey, randomBytes, randomUUID, sign } from 'node:crypto';
import { fromBase64Url, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { UsageError } from '@keyguard/core/errors';
import type { AuditMacKey, Bytes, CheckpointSigner, Clock, KeyRecordState } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { lengthPrefixed } from '@keyguard/core/vault';
import { nodeMacKey, type KeyRecord, type KeyRecords, type RowMacKey } from '@keyguard/storage-node/postgres';
import type { RootKeyConfig } from '../config.ts';
import { auditMacKeys, type AuditMacKeys } from './audit-mac-keys.ts';
import { openKeyring, type Keyring } from './keyring.ts';
import { openRoot, type Root } from './root.ts';
import { rootUnchanged } from './root-unchanged.ts';

const KEY_BYTES = 32;
const LABEL = 'keyguard-service-key-v1';
const PURPOSES = ['deployment', 'kek', 'audit-mac', 'row-mac', 'token-hash', 'pseudonym', 'fingerprint', 'session-secret', 'jwt-signing', 'checkpoint-signing'] as const;
export type Purpose = (typeof PURPOSES)[number];

// What stands before the 32 bytes of an Ed25519 key in PKCS #8.
const ED25519_PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex');

/** An Ed25519 pair as JWKs; the private one is for better-auth, which signs with it. */
export interface JwtKey {
  readonly keyId: string;
  readonly publicJwk: Readonly<Record<string, unknown>>;
  readonly privateJwk: Readonly<Record<string, unknown>>;
  readonly createdAtMs: number;
}

/** HMAC-SHA-256 of a text, base64url. */
export type KeyedHash = (text: string) => string;

export interface DeploymentKeys {
  /** Random, and in every AAD. */
  readonly deploymentId: string;
  /** Wraps the keys of stored values. */
  readonly kek: Keyring;
  /** Under which the audit log was chained when the keys were opened. */
  readonly auditMacKey: AuditMacKey;
  /** Under which it is chained now, and those under which it was. */
  readonly auditMac: AuditMacKeys;
  /** Signs checkpoints of the audit log. */
  readonly checkpointSigner: CheckpointSigner;
  readonly rowMacKey: RowMacKey;
  /** For codes and tokens of which only the hash is kept. */
  readonly hashToken: KeyedHash;
  /** For values in the audit log that could be guessed from a bare hash. */
  readonly pseudonym: KeyedHash;
  readonly keyFingerprint: KeyedHash;
  /** better-auth's secret. */
  readonly sessionSecret: string;
  readonly jwt: JwtKey;
}

/** What a record is bound to; the root that wraps it is not in it. */
export function context(deploymentId: string, purpose: string, id: string): Bytes {
  return lengthPrefixed(utf8(LABEL), utf8(deploymentId), utf8(purpose), utf8(id));
}

export async function unwrap(root: Root, record: KeyRecord, purpose: string, deploymentId: string): Promise<Bytes> {
  if (record.rootId !== root.rootId) throw new UsageError('key_store_unusable', `The key ${record.id} is under another root.`);
  try {
    return await root.keyProvider.unwrap({ kekId: root.rootId, bytes: record.wrapped }, context(deploymentId, purpose, record.id));
  } catch (cause) {
    throw new UsageError('key_store_unusable', `The key ${record.id} in the database does not open: it was changed, or belongs to another deployment.`, { cause });
  }
}

export function primaryOf(records: readonly KeyRecord[], purpose: Purpose): KeyRecord | undefined {
  return records.find((record) => record.purpose === purpose && record.state === 'primary');
}

async function makeRecord(root: Root, purpose: Purpose, deploymentId: string, nowMs: number, state: KeyRecordState = 'primary'): Promise<KeyRecord> {
  const id = `${purpose}-${randomUUID()}`;
  const key: Bytes = Uint8Array.from(randomBytes(KEY_BYTES));
  try {
    const { bytes } = await root.keyProvider.wrap(key, context(deploymentId, purpose, id));
    return { id, purpose, state, wrapped: bytes, rootId: root.rootId, createdAtMs: nowMs };
  } finally {
    key.fill(0);
  }
}

export async function deploymentIdOf(root: Root, record: KeyRecord): Promise<string> {
  return toBase64Url(await unwrap(root, record, 'deployment', ''));
}

/**
 * The keys of the deployment, made where they are missing. Processes that start at the same time all get the same ones: what
 * counts is what the database has kept.
 * @throws UsageError `key_store_unusable` with what to do
 */
export async function openDeploymentKeys(records: KeyRecords, rootKey: RootKeyConfig, clock: Clock = systemClock): Promise<DeploymentKeys> {
  let kept = await records.list();
  let root = await openRoot(rootKey, kept);
  if (primaryOf(kept, 'deployment') === undefined) {
    kept = await records.insertIfAbsent([await makeRecord(root, 'deployment', '', clock.nowMs())]);
    // Another process may have been first, with a salt of its own.
    root = await openRoot(rootKey, kept);
  }
  const deployment = primaryOf(kept, 'deployment')!;
  const deploymentId = await deploymentIdOf(root, deployment);
  const demandRootIn = rootUnchanged(deployment);
  const missing = PURPOSES.filter((purpose) => primaryOf(kept, purpose) === undefined);
  if (missing.length > 0) {
    kept = await records.insertIfAbsent(await Promise.all(missing.map((purpose) => makeRecord(root, purpose, deploymentId, clock.nowMs()))));
  }
  const open = async (purpose: Purpose): Promise<{ readonly record: KeyRecord; readonly key: Bytes }> => {
    const record = primaryOf(kept, purpose)!;
    return { record, key: await unwrap(root, record, purpose, deploymentId) };
  };
  const [rowMac, tokenHash, pseudonym, fingerprint, sessionSecret, jwtSigning, checkpointSigning] = await Promise.all([
    open('row-mac'),
    open('token-hash'),
    open('pseudonym'),
    open('fingerprint'),
    open('session-secret'),
    open('jwt-signing'),
    open('checkpoint-signing'),
  ]);
  const auditMac = await auditMacKeys({
    records,
    kept,
    open: (record) => unwrap(root, record, 'audit-mac', deploymentId),
    make: () => makeRecord(root, 'audit-mac', deploymentId, clock.nowMs(), 'pre-active'),
    demandRootIn,
  });
  return {
    deploymentId,
    kek: await openKeyring({
      records,
      openRecord: (record) => unwrap(root, record, 'kek', deploymentId),
      makeRecord: () => makeRecord(root, 'kek', deploymentId, clock.nowMs(), 'pre-active'),
      demandRootIn,
    }),
    auditMacKey: auditMac.macKey,
    auditMac,
    checkpointSigner: ed25519Signer(checkpointSigning.key),
    rowMacKey: nodeMacKey({ keyId: rowMac.record.id, key: rowMac.key }),
    hashToken: keyedHash(tokenHash.key),
    pseudonym: keyedHash(pseudonym.key),
    keyFingerprint: keyedHash(fingerprint.key),
    sessionSecret: toBase64Url(sessionSecret.key),
    jwt: jwtKey(jwtSigning.record, jwtSigning.key),
  };
}

function keyedHash(key: Bytes): KeyedHash {
  const held = createSecretKey(key);
  return (text) => createHmac('sha256', held).update(text, 'utf8').digest('base64url');
}

function ed25519Signer(seed: Bytes): CheckpointSigner {
  const privateKey = createPrivateKey({ key: Buffer.concat([ED25519_PKCS8, seed]), format: 'der', type: 'pkcs8' });
  const { x } = createPublicKey(privateKey).export({ format: 'jwk' });
  return { publicKey: fromBase64Url(x!)!, sign: (data) => Uint8Array.from(sign(null, data, privateKey)) };
}

function jwtKey({ id, createdAtMs }: KeyRecord, seed: Bytes): JwtKey {
  const privateKey = createPrivateKey({ key: Buffer.concat([ED25519_PKCS8, seed]), format: 'der', type: 'pkcs8' });
  return {
    keyId: id,
    publicJwk: { ...createPublicKey(privateKey).export({ format: 'jwk' }) },
    privateJwk: { ...privateKey.export({ format: 'jwk' }) },
    createdAtMs,
  };
}
