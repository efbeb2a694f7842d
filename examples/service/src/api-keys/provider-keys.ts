/**
 * Which key a device uses with a provider: its project's, and no other. What was opened is kept for one second, so that a key that
 * is revoked is out of use within a second everywhere, and at once in the process that revoked it.
 */
import type { Device } from '@keyguard/core/seams';
import type { ProviderKey } from '../llm/routes.ts';
import type { TrustedUpstream } from '../llm/provider.ts';
import type { ApiKeys } from './store.ts';

const KEPT_MS = 1000;
const MAX_KEPT = 1000;

export interface ProviderKeysOptions {
  readonly apiKeys: () => Pick<ApiKeys, 'openDefault' | 'hasAny'>;
  /** Where the key of a provider may be sent, by the operator's configuration. */
  readonly upstreams: ReadonlyMap<string, TrustedUpstream>;
  /** Answers in place of a provider of which no key was ever stored. */
  readonly demo: { readonly provider: string; readonly key: ProviderKey } | null;
}

export interface ProviderKeys {
  find(device: Device, provider: string): Promise<ProviderKey | null>;
  /** Forgets everything, what is being opened at this moment included. */
  clear(): void;
}

export function providerKeys({ apiKeys, upstreams, demo }: ProviderKeysOptions): ProviderKeys {
  let kept = new Map<string, { readonly key: Promise<ProviderKey | null>; readonly untilMs: number }>();

  async function load(projectId: string, provider: string): Promise<ProviderKey | null> {
    const upstream = upstreams.get(provider);
    const apiKey = upstream === undefined ? null : await apiKeys().openDefault(projectId, provider);
    if (upstream !== undefined && apiKey !== null) return { upstream, apiKeyId: apiKey.id, apiKey: apiKey.value };
    // A key that was revoked is not replaced by a demonstration: only where there never was one.
    return demo !== null && demo.provider === provider && !(await apiKeys().hasAny(provider)) ? demo.key : null;
  }

  return {
    async find({ projectId }, provider) {
      if (projectId === null) return null;
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
    },
    clear() {
      kept = new Map();
    },
  };
}
