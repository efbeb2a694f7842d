/**
 * Tries a provider key by a call that costs nothing. What is learned is whether the provider took it, how it answered and how long that
 * took; of its answer nothing but the status is read. No redirect is followed, and nothing is asked twice.
 */
import http, { type ClientRequest } from 'node:http';
import https from 'node:https';
import type { KeyOptions, Provider, TrustedUpstream } from './provider.ts';

/** In the words that people and programs are told. */
export const PROBE_CODES = ['accepted', 'key_refused', 'rate_limited', 'redirected', 'upstream_error', 'unexpected_status', 'unreachable', 'timed_out'] as const;
export type ProbeCode = (typeof PROBE_CODES)[number];

export interface ProbeOutcome {
  /** Only where the provider answered with success. */
  readonly ok: boolean;
  readonly code: ProbeCode;
  /** Of the provider's answer; `null` where there was none. */
  readonly status: number | null;
  readonly latencyMs: number;
}

export interface ProbedKey {
  readonly upstream: TrustedUpstream;
  /** Secret. */
  readonly apiKey: string;
  readonly options: KeyOptions;
}

/** For the whole of it: the name, the connection, TLS and the head of the answer. */
export const PROBE_TIMEOUT_MS = 10_000;

function codeOf(status: number): ProbeCode {
  if (status >= 200 && status < 300) return 'accepted';
  if (status === 401 || status === 403) return 'key_refused';
  if (status === 429) return 'rate_limited';
  if (status >= 300 && status < 400) return 'redirected';
  return status >= 500 && status < 600 ? 'upstream_error' : 'unexpected_status';
}

/** MUST NOT be called in a transaction. Never rejects. */
export function probe(provider: Provider, { upstream, apiKey, options }: ProbedKey, timeoutMs: number = PROBE_TIMEOUT_MS): Promise<ProbeOutcome> {
  const beganMs = performance.now();
  const { rest, query, headers } = provider.probe(options);
  return new Promise((resolve) => {
    let request: ClientRequest | undefined;
    const settle = (code: ProbeCode, status: number | null): void => {
      clearTimeout(timer);
      resolve({ ok: code === 'accepted', code, status, latencyMs: Math.round(performance.now() - beganMs) });
      // What follows the head is nobody's to read.
      request?.destroy();
    };
    const timer = setTimeout(() => settle('timed_out', null), timeoutMs);
    try {
      request = (upstream.secure ? https : http).request({
        // A connection of its own: what it leaves behind is in nobody's way.
        agent: false,
        host: upstream.hostname,
        port: upstream.port,
        method: 'GET',
        path: `${upstream.basePath}/${rest}${query === '' ? '' : `?${query}`}`,
        headers: { host: upstream.authority, accept: 'application/json', 'accept-encoding': 'identity', 'user-agent': 'keyguard', ...headers, ...provider.authorization(apiKey) },
      });
    } catch {
      // Nothing was sent: for instance a value that no header can hold.
      settle('unreachable', null);
      return;
    }
    request
      .on('response', ({ statusCode = 0 }) => settle(codeOf(statusCode), statusCode))
      .on('error', () => settle('unreachable', null))
      .on('upgrade', () => settle('unexpected_status', 101))
      .end();
  });
}
