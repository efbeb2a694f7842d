/**
 * Which key a device uses with a provider: its project's, and no other. What was opened is kept for one second, so that a key that
 * is revoked, rotated, or past its time is out of use within a second everywhere, and at once in the process that changed it.
 */
import type { Clock, Device } from '@keyguard/core/seams';
import type { ProviderKey, ProviderKeyRefusal } from '../llm/routes.ts';
import type { ApiKeys } from './store.ts';
import type { KeyUpstreams } from './upstreams.ts';

const KEPT_MS = 1000;
const MAX_KEPT = 1000;

export interface ProviderKeysOptions {
  readonly apiKeys: () => Pick<ApiKeys, 'findDefault' | 'hasAny'>;
  /** Where keys may be sent, by the operator's configuration. */
  readonly upstreams: KeyUpstreams;
  /** Answers in place of a provider of which no key was ever stored. */
  readonly demo: { readonly provider: string; readonly key: ProviderKey } | null;
  /** Told of each use of a stored key. */
  readonly onUsed: (apiKeyId: string) => void;
  readonly clock: Clock;
}

type Found = ProviderKey | ProviderKeyRefusal;

export interface ProviderKeys {
  find(device: Device, provider: string): Promise<Found | null>;
  /** Forgets everything, what is being opened at this moment included. */
  clear(): void;
}

export function providerKeys({ apiKeys, upstreams, demo, onUsed, clock }: ProviderKeysOptions): ProviderKeys {
  let kept = new Map<string, { readonly key: Promise<Found | null>; readonly untilMs: number }>();

  async function load(projectId: string, provider: string): Promise<Found | null> {
    const usable = await apiKeys().findDefault(projectId, provider);
    if (usable === null) {
      // A key that was revoked is not replaced by a demonstration: only where there never was one.
      return demo !== null && demo.provider === provider && !(await apiKeys().hasAny(provider)) ? demo.key : null;
    }
    const { key } = usable;
    // Asked before it is opened, and each time anew: a list that has become shorter counts.
    const upstream = upstreams.of(key);
    if (upstream === null) return key.baseUrl === null ? null : { refusedBy: 'provider_key_unplaced' };
    if (key.expiresAtMs !== null && key.expiresAtMs <= clock.nowMs()) return { refusedBy: 'provider_key_expired' };
    return { upstream, apiKeyId: key.id, apiKey: await usable.open(), options: key.options };
  }

  async function looked(projectId: string, provider: string): Promise<Found | null> {
    const name = JSON.stringify([projectId, provider]);
    const now = performance.now();
    const found = kept.get(name);
    if (found !== undefined && now < found.untilMs) return found.key;
    if (kept.size >= MAX_KEPT) kept.delete(kept.keys().next().value!);
    const key = load(projectId, provider);
    const entry = { key, untilMs: now + KEPT_MS };
    kept.set(name, entry);
    key.catch(() => {
      if (kept.get(name) === entry) kept.delete(name);
    });
    return key;
  }

  return {
    async find({ projectId }, provider) {
      const found = projectId === null ? null : await looked(projectId, provider);
      if (found !== null && 'apiKeyId' in found && found.apiKeyId !== null) onUsed(found.apiKeyId);
      return found;
    },
    clear() {
      kept = new Map();
    },
  };
}
