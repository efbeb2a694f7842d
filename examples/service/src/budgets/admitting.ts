/**
 * Budgets, as the proxy asks for them: what a call is expected to use, whether there is room for it, and what it is charged with when
 * it is over.
 */
import { fromUtf8 } from '@keyguard/core/bytes';
import type { Clock } from '@keyguard/core/seams';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { Admit, AskedCall, Charge } from '../llm/allowance.ts';
import type { CallEnding } from '../llm/forward.ts';
import type { LimitState } from '../llm/limit-fields.ts';
import { topMembers } from '../llm/json-members.ts';
import { parsed } from '../llm/metering.ts';
import type { Asked } from '../llm/provider.ts';
import { estimatedOutput } from '../usage/estimates.ts';
import type { PriceList } from '../usage/prices.ts';
import { charge, takeBack, type Amount, type Charged, type Exhausted, type Standing } from './charging.ts';
import { periodAround } from './rows.ts';
import type { Standings } from './standings.ts';

// Where a call names no bound of its output, as most do.
const USUAL_OUTPUT_TOKENS = 4096;

export interface AdmittingOptions {
  readonly sql: SqlClient;
  readonly standings: Standings;
  readonly prices: PriceList;
  readonly clock: Clock;
  readonly onFault: (error: unknown) => void;
}

interface Expectation extends Amount {
  readonly asked: Asked;
}

export function admitting({ sql, standings, prices, clock, onFault }: AdmittingOptions): Admit {
  /** What is expected of a call; or why none can be told, where tokens or money are counted. */
  function expectationOf({ provider, rest, spending, expectedInput: inputTokens, body }: AskedCall, bound: readonly Standing[]): Expectation | 'price_unknown' | 'usage_untold' {
    const isCounted = bound.some(({ budget }) => budget.maxTokens !== null || budget.maxCostMicros !== null);
    // Nothing need be looked at where requests alone are counted.
    if (!isCounted || inputTokens === null) return { asked: NOTHING_ASKED, tokens: 0, costMicros: 0 };
    const asked = provider.asks(rest, valueOf(body));
    // Whatever it is charged with would stay as it is, and it may use a thousand times as much.
    if (spending === 'elsewhere' || asked.isInBackground) return 'usage_untold';
    const output = asked.maxOutputTokens ?? USUAL_OUTPUT_TOKENS;
    const cost = prices.atMost(provider.name, asked.model, { input: inputTokens, output });
    if (cost === null && bound.some(({ budget }) => budget.maxCostMicros !== null)) return 'price_unknown';
    return { asked, tokens: inputTokens + output, costMicros: cost?.micros ?? 0 };
  }

  function chargeOf({ provider, expectedInput }: AskedCall, { asked }: Expectation, ending: CallEnding): Charge {
    const { outcome, status, usage, responseBytes, isStream } = ending;
    if (expectedInput === null || FREE.has(outcome) || (outcome === 'completed' && (status ?? 0) >= 300)) return NO_CHARGE;
    const input = usage?.inputTokens ?? null;
    const output = usage?.outputTokens ?? null;
    const isWhole = outcome === 'completed' && (input !== null || output !== null);
    const counts = {
      cachedInputTokens: usage?.cachedInputTokens ?? null,
      cacheWriteTokens: usage?.cacheWriteTokens ?? null,
      inputTokens: input ?? (isWhole ? 0 : expectedInput),
      // What a stream that was cut has reported is of its beginning.
      outputTokens: isWhole ? (output ?? 0) : Math.max(output ?? 0, estimatedOutput(responseBytes, isStream)),
    };
    const tokens = counts.inputTokens + counts.outputTokens;
    const cost = prices.costOf(provider.name, usage?.model ?? asked.model, counts) ?? prices.costOf(provider.name, asked.model, counts);
    const most = cost ?? prices.atMost(provider.name, asked.model, { input: counts.inputTokens, output: counts.outputTokens });
    return { tokens, costMicros: most?.micros ?? 0, isEstimated: !isWhole || cost === null };
  }

  return async (call) => {
    const bound = await standings.of(call.device);
    if (bound.length === 0) return null;
    const nowMs = clock.nowMs();
    const expectation = expectationOf(call, bound);
    if (expectation === 'usage_untold') return { refusedBy: expectation, retryAtMs: null, limits: [] };
    if (expectation === 'price_unknown') return { refusedBy: expectation, message: UNPRICED, retryAtMs: null, limits: [] };
    const result = await charge(sql, call.callId, bound, expectation, nowMs);
    if (!Array.isArray(result)) {
      const exhausted = result as Exhausted;
      return { refusedBy: 'budget_exceeded', message: messageOf(exhausted), retryAtMs: exhausted.retryAtMs, limits: [limitReached(exhausted, nowMs)] };
    }
    return {
      limits: (result as readonly Charged[]).flatMap(limitsOf),
      charge: (ending) => chargeOf(call, expectation, ending),
      takeBack: () => takeBack(sql, call.callId).catch(onFault),
    };
  };
}

const NOTHING_ASKED: Asked = { model: null, maxOutputTokens: null, isInBackground: false };
const NO_CHARGE: Charge = { tokens: 0, costMicros: 0, isEstimated: false };
// The provider was not reached, or did nothing.
const FREE: ReadonlySet<string> = new Set(['upstream_unreachable', 'upstream_redirect', 'upstream_key_refused', 'internal_error']);
const UNPRICED = 'A budget in money binds this device, and KeyGuard knows no prices of this provider: an administrator can set another kind of budget, or the operator a list of prices.';

/** The value of a JSON body; `undefined` for none, and for one that another reader could read differently: in other letters, or with a member twice. */
function valueOf(body: Uint8Array): unknown {
  const members = topMembers(body, () => false);
  if (members === null || new Set(members.map(({ name }) => name)).size < members.length) return undefined;
  return parsed(fromUtf8(body as Uint8Array<ArrayBuffer>));
}

function messageOf({ subject, budget }: Exhausted): string {
  const whose = subject.type === 'device' ? "This device's budget" : "The budget of this device's project";
  return `${whose} for the ${budget.period} (UTC) has no room for this call: wait for the next one, name a smaller maximum of output tokens, or ask an administrator for more.`;
}

function limitsOf({ subject, budget, window, endsMs }: Charged): LimitState[] {
  const kinds = [
    ['requests', budget.maxRequests, window.requests],
    ['tokens', budget.maxTokens, window.tokens],
    ['cost-micros', budget.maxCostMicros, window.costMicros],
  ] as const;
  const windowSeconds = (endsMs - window.beganMs) / 1000;
  return kinds.flatMap(([kind, quota, used]) =>
    quota === null ? [] : [{ name: `${subject.type}-${kind}`, quota, windowSeconds, remaining: Math.max(0, quota - used), resetAtMs: endsMs }],
  );
}

/** Of the limits of an exhausted budget the first one: which of them it was, the next answer need not tell apart. */
function limitReached({ subject, budget }: Exhausted, nowMs: number): LimitState {
  const { beganMs, endsMs } = periodAround(budget.period, nowMs);
  const [kind, quota] = budget.maxRequests !== null ? ['requests', budget.maxRequests] : budget.maxTokens !== null ? ['tokens', budget.maxTokens] : ['cost-micros', budget.maxCostMicros ?? 0];
  return { name: `${subject.type}-${kind}`, quota, windowSeconds: (endsMs - beganMs) / 1000, remaining: 0, resetAtMs: endsMs };
}
