/**
 * What the proxy asks of budgets: may this call be sent, and what is it charged with in the end. Nothing here knows how budgets are kept.
 */
import type { Device } from '@keyguard/core/seams';
import type { CallEnding } from './forward.ts';
import type { LimitState } from './limit-fields.ts';
import type { Provider, Spending } from './provider.ts';

/** A call that is about to be sent. */
export interface AskedCall {
  readonly callId: string;
  readonly device: Device;
  readonly provider: Provider;
  /** As in {@link Provider.asks}. */
  readonly rest: string;
  readonly spending: Spending;
  /** What its input probably is; `null` for a call that uses no tokens. */
  readonly expectedInput: number | null;
  /** Signed, and otherwise untrusted. */
  readonly body: Uint8Array;
}

/** What a call is charged with. */
export interface Charge {
  readonly tokens: number;
  /** Millionths of a US dollar. */
  readonly costMicros: number;
  /** Whether the provider reported less than this takes. */
  readonly isEstimated: boolean;
}

/** A call that there is room for, and that is charged with what it is expected to use. */
export interface Allowance {
  /** What is left. */
  readonly limits: readonly LimitState[];
  /** What the call is charged with, now that it has ended so. */
  charge(ending: CallEnding): Charge;
  /** Nothing was sent, and nothing is charged. Never rejects. */
  takeBack(): Promise<void>;
}

/** A call that there is no room for. */
export interface NoAllowance {
  readonly refusedBy: 'budget_exceeded' | 'price_unknown' | 'usage_untold';
  /** Where it can be said more exactly than in the table of failures. */
  readonly message?: string;
  /** When there may be; Unix milliseconds. */
  readonly retryAtMs: number | null;
  readonly limits: readonly LimitState[];
}

/** `null`: no budget binds this call. Throws when it cannot tell. */
export type Admit = (call: AskedCall) => Promise<Allowance | NoAllowance | null>;
