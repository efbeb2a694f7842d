import { deviceRegistryConformance, keyProviderConformance, keyStoreConformance, RATE_LIMIT, rateLimiterConformance, type CodeWanted } from '@keyguard/conformance';
import { RejectedError, UnavailableError, UsageError } from '@keyguard/core/errors';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import { memoryDeviceRegistry } from '@keyguard/core/memory';
import type { Device, DeviceRegistry, EnrollmentOutcome, KeyProvider, KeyRotationOutcome, KeyStore, RateDecision, SigningKey } from '@keyguard/core/seams';
import { aesKeyProvider } from '@keyguard/core/vault';
import { newShelf, orOutage } from './shelf.ts';

const WINDOW_MS = 60_000;

for (const flaw of ['sound', 'looks, then writes', 'lets through when it fails', 'ends windows early'] as const) {
  rateLimiterConformance(`limiter: ${flaw}`, () => {
    const shelf = newShelf();
    const counts = new Map<string, { count: number; resetAtMs: number }>();
    let nowMs = 1_800_000_000_000;
    const early = flaw === 'ends windows early' ? 1 : 0;
    const held = (key: string): { count: number; resetAtMs: number } => {
      const found = counts.get(key);
      return found === undefined || nowMs >= found.resetAtMs - early ? { count: 0, resetAtMs: nowMs + WINDOW_MS } : { ...found };
    };
    const decide = ({ count, resetAtMs }: { count: number; resetAtMs: number }, limit: number): RateDecision => ({
      allowed: count <= limit,
      limit,
      remaining: Math.max(0, limit - count),
      resetAtMs,
    });
    const open = (): RateDecision | undefined =>
      flaw === 'lets through when it fails' ? { allowed: true, limit: RATE_LIMIT, remaining: 0, resetAtMs: nowMs } : undefined;
    const limiter = {
      peek: (key: string, limit = RATE_LIMIT) =>
        orOutage('rate_limiter', () => shelf.step(() => decide({ ...held(key), count: held(key).count + 1 }, limit), false), open),
      consume: (key: string, cost: number, limit = RATE_LIMIT) =>
        orOutage(
          'rate_limiter',
          async () => {
            let state = held(key);
            if (flaw === 'looks, then writes') state = await shelf.step(() => held(key), false);
            return shelf.step(() => {
              if (flaw !== 'looks, then writes') state = held(key);
              state.count += cost;
              counts.set(key, state);
              return decide(state, limit);
            });
          },
          open,
        ),
    };
    return { limiter, peer: limiter, windowMs: WINDOW_MS, nowMs: () => nowMs, advance: (ms) => void (nowMs += ms), faults: shelf.faults };
  });
}

for (const flaw of ['sound', 'binds no context', 'tells outages as refusals'] as const) {
  const shelf = newShelf();
  keyProviderConformance(`provider: ${flaw}`, {
    faults: shelf.faults,
    place: async () => {
      const inner = await aesKeyProvider({ kekId: 'kek', key: crypto.getRandomValues(new Uint8Array(32)) });
      const reached = async (): Promise<void> => {
        await shelf.step(() => {}).catch((cause: unknown) => {
          if (flaw === 'tells outages as refusals') throw new RejectedError('vault_open_failed', 'The value cannot be opened.');
          throw new UnavailableError('key_provider', 'It broke.', { cause });
        });
      };
      const provider: KeyProvider = {
        async wrap(dek, context) {
          await reached();
          return inner.wrap(dek, flaw === 'binds no context' ? new Uint8Array() : context);
        },
        async unwrap(wrapped, context) {
          await reached();
          return inner.unwrap(wrapped, flaw === 'binds no context' ? new Uint8Array() : context);
        },
      };
      return () => provider;
    },
  });
}

for (const flaw of ['sound', 'makes another key when it fails', 'takes a failure for no key', 'promotes what it was told before'] as const) {
  const shelf = newShelf();
  const fresh = async (): Promise<SigningKey> => signingKey(await generateKeyPair());
  keyStoreConformance(`keys: ${flaw}`, {
    faults: shelf.faults,
    place: () => {
      const records = new Map<string, { key: SigningKey; pending: SigningKey | null }>();
      const step = <T>(work: () => T, needsRoom?: boolean): Promise<T> =>
        shelf.step(work, needsRoom).catch((cause: unknown) => {
          throw new UsageError('key_store_unusable', 'It broke.', { cause });
        });
      const settle = (name: string, pendingKeyId: string, set: (record: { key: SigningKey; pending: SigningKey | null }) => void): Promise<boolean> => {
        const once = (): Promise<boolean> =>
          step(() => {
            const record = records.get(name);
            if (record?.pending?.keyId !== pendingKeyId) return false;
            set(record);
            record.pending = null;
            return true;
          }, false);
        return flaw === 'promotes what it was told before' ? once().catch(once) : once();
      };
      const store: KeyStore = {
        async getOrCreate(name) {
          const made = await fresh();
          const found = (): SigningKey => {
            const record = records.get(name) ?? { key: made, pending: null };
            records.set(name, record);
            return record.key;
          };
          const kept = await step(() => records.has(name), false).catch(() => false);
          return step(found, !kept).catch((error: unknown) => {
            if (flaw === 'makes another key when it fails') return made;
            throw error;
          });
        },
        get: (name) =>
          step(() => records.get(name)?.key ?? null, false).catch((error: unknown) => {
            if (flaw === 'takes a failure for no key') return null;
            throw error;
          }),
        getPending: (name) => step(() => records.get(name)?.pending ?? null, false),
        async getOrCreatePending(name) {
          const made = await fresh();
          const pending = await step(() => {
            const record = records.get(name);
            return record && (record.pending ??= made);
          });
          if (pending === undefined) throw new UsageError('not_enrolled', 'There is no key of that name.');
          return pending;
        },
        promote: (name, id) =>
          settle(name, id, (record) => {
            record.key = record.pending!;
          }),
        discard: (name, id) => settle(name, id, () => {}),
        delete: (name) => step(() => void records.delete(name), false),
      };
      return () => store;
    },
  });
}

for (const flaw of ['sound', 'takes an outage for an unknown device', 'gives a use back when it fails', 'rotates again, and says so, when it fails'] as const) {
  deviceRegistryConformance(`devices: ${flaw}`, () => {
    const shelf = newShelf();
    const devices = memoryDeviceRegistry();
    const codes = new Map<string, CodeWanted>();
    const registry: DeviceRegistry = {
      findByKeyId: (keyId) =>
        orOutage(
          'device_registry',
          () => shelf.step(() => devices.findByKeyId(keyId) as Device | null, false),
          () => (flaw === 'takes an outage for an unknown device' ? null : undefined),
        ),
      enroll: (request) =>
        orOutage('device_registry', () => shelf.step(() => devices.enroll(request) as EnrollmentOutcome), () => {
          const code = codes.get(request.codeHash ?? '');
          if (flaw === 'gives a use back when it fails' && code !== undefined) devices.addCode(code);
          return undefined;
        }),
      rotate: (request) =>
        orOutage('device_registry', async () => {
          const once = (): Promise<KeyRotationOutcome> => shelf.step(() => devices.rotate(request) as KeyRotationOutcome);
          if (flaw !== 'rotates again, and says so, when it fails') return once();
          // Another's key may have won meanwhile.
          return once().catch(async () => ({ ...(await once()), outcome: 'rotated' }) as KeyRotationOutcome);
        }),
    };
    return {
      registry,
      peer: registry,
      nowMs: () => 1_800_000_000_000,
      addCode(code) {
        codes.set(code.codeHash, code);
        devices.addCode(code);
      },
      addRotationCode: (code) => devices.addRotationCode(code),
      suspend: (deviceId) => void devices.transition(deviceId, 'suspend'),
      revoke: (deviceId) => void devices.transition(deviceId, 'revoke'),
      faults: shelf.faults,
    };
  });
}
