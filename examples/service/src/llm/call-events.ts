/**
 * What the audit log is told of a call, and when.
 *
 * `started` is appended and awaited BEFORE anything is sent to the provider: no provider key is used without an entry, and if the
 * entry cannot be written the call is refused. `ended` is appended before the answer ends. If that one fails the answer ends all
 * the same, as the provider has done (and billed) its work: the call is on record, and an entry without an ending says that its
 * outcome is not known.
 */
import type { AuditEntry, Device, JsonValue } from '@keyguard/core/seams';
import type { Cost } from '../usage/prices.ts';
import { estimatedOutput } from '../usage/estimates.ts';
import type { Charge } from './allowance.ts';
import type { FailureCode } from './failures.ts';
import type { CallEnding } from './forward.ts';
import type { Usage } from './provider.ts';

/** One call of a device. */
export interface Call {
  /** Joins the entries of one call. */
  readonly callId: string;
  readonly device: Device;
  readonly provider: string;
  /** Which stored key it uses; `null` before that is known, and for the built-in demonstration. */
  readonly apiKeyId: string | null;
  /** Of the body. */
  readonly requestBytes: number;
  readonly method: string;
  /** The signed path. The query is left out: it is the caller's content. */
  readonly path: string;
  readonly startedAtMs: number;
}

export type CallEvent =
  | (Call & { readonly type: 'started' })
  | (Call & { readonly type: 'refused'; readonly code: FailureCode; readonly status: number })
  | (Call & CallEnding & CallCost & { readonly type: 'ended'; readonly durationMs: number });

/** What a call cost. */
export interface CallCost {
  /** What its input probably was; `null` for a call that uses no tokens. */
  readonly expectedInput: number | null;
  /** By the list of prices; `null` where it has none for the model, or nothing was reported. */
  readonly cost: Cost | null;
  /** What budgets are charged with; `null` where none binds the call. */
  readonly charge: Charge | null;
}

const MAX_PATH_CHARACTERS = 1024;

type Members = Readonly<Record<string, JsonValue>>;

const isSet = (value: number | null): value is number => value !== null && value > 0;

/** As the provider reported it; what it did not is left out. */
function usageMembers({ model, inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens }: Usage): Members {
  return {
    ...(model !== null && { model }),
    ...(inputTokens !== null && { input_tokens: inputTokens }),
    ...(outputTokens !== null && { output_tokens: outputTokens }),
    ...(isSet(cachedInputTokens) && { cached_input_tokens: cachedInputTokens }),
    ...(isSet(cacheWriteTokens) && { cache_write_tokens: cacheWriteTokens }),
  };
}

/** What is not as it should be about the figures of a call that was answered. Of an error nothing is billed. */
function marks({ outcome, status, usage, responseBytes, isStream, expectedInput }: CallEnding & CallCost): Members {
  if (status === null || status < 200 || status >= 300) return {};
  const isReported = (usage?.inputTokens ?? null) !== null || (usage?.outputTokens ?? null) !== null;
  return {
    ...(outcome !== 'completed' && { partial: true }),
    ...(expectedInput !== null && !isReported && { usage_unknown: true, estimated_tokens: expectedInput + estimatedOutput(responseBytes, isStream) }),
  };
}

function costMembers({ cost, charge }: CallCost): Members {
  return {
    ...(cost !== null && { cost_micros: cost.micros, price_source: cost.source }),
    ...(charge !== null && { charged_tokens: charge.tokens, charged_cost_micros: charge.costMicros, ...(charge.isEstimated && { charge_estimated: true }) }),
  };
}

/** The audit entry of an event: `llm.call`, `llm.call_refused` or `llm.call_ended`. */
export function callAuditEntry(event: CallEvent): AuditEntry {
  const { callId, device, provider, apiKeyId, requestBytes, method, path } = event;
  const common = {
    actor: `device:${device.deviceId}`,
    owner_id: device.ownerId,
    project_id: device.projectId,
    key_id: device.keyId,
    call_id: callId,
    provider,
    ...(apiKeyId !== null && { api_key_id: apiKeyId }),
    method,
    path: path.slice(0, MAX_PATH_CHARACTERS),
  };
  switch (event.type) {
    case 'started':
      return { action: 'llm.call', outcome: 'success', ...common };
    case 'refused':
      return { action: 'llm.call_refused', outcome: 'refused', ...common, status: event.status, code: event.code };
    case 'ended': {
      const { outcome, status, responseBytes, usage, durationMs } = event;
      return {
        action: 'llm.call_ended',
        outcome: outcome === 'completed' ? 'success' : 'failed',
        ...common,
        status,
        code: outcome,
        request_bytes: requestBytes,
        response_bytes: responseBytes,
        duration_ms: durationMs,
        ...(usage !== null && usageMembers(usage)),
        ...marks(event),
        ...costMembers(event),
      };
    }
  }
}
