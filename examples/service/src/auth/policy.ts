/**
 * What the settings of a deployment may demand of people, and the two questions that are asked by it: may this session do anything
 * at all, and may it do this now.
 */
import { HttpProblem } from '../http/problems.ts';
import type { SettingsDocument } from '../settings/schema.ts';
import type { Person, Principal } from './principal.ts';

/** What can be made to demand a fresh second factor; and `policy`, the change of such demands, which demands one wherever anything does. */
export type StepUpAction = 'reveal' | 'share' | 'approve' | 'policy';

export interface SignInPolicy {
  /** For how long a session lasts, however much it is used. */
  readonly sessionLengthSeconds: number;
  /** For how long it lasts that nobody uses. */
  readonly sessionIdleSeconds: number;
  /** Who may do nothing but set a second factor up, until there is one. */
  readonly secondFactorRequiredFor: 'nobody' | 'administrators' | 'everyone';
  readonly stepUp: {
    /** What demands a second factor that was proven a short time ago. */
    readonly actions: ReadonlySet<StepUpAction>;
    /** How short. */
    readonly withinSeconds: number;
    /** A service account has no second factor: whether it may do what demands one of people. */
    readonly serviceAccounts: 'refused' | 'allowed';
  };
}

/** Asked at every decision, so that a change of the settings counts at once. */
export type CurrentSignInPolicy = () => SignInPolicy;

/** What `settings` demand. */
export function policyOf({ mfa, step_up: stepUp, sessions }: Pick<SettingsDocument, 'mfa' | 'step_up' | 'sessions'>): SignInPolicy {
  return {
    sessionLengthSeconds: sessions.length_s,
    sessionIdleSeconds: sessions.idle_timeout_s,
    secondFactorRequiredFor: mfa.required_for,
    stepUp: { actions: new Set(stepUp.actions), withinSeconds: stepUp.freshness_s, serviceAccounts: stepUp.service_accounts },
  };
}

export const DEFAULT_SIGN_IN_POLICY: SignInPolicy = {
  sessionLengthSeconds: 24 * 60 * 60,
  sessionIdleSeconds: 24 * 60 * 60,
  secondFactorRequiredFor: 'nobody',
  stepUp: { actions: new Set(), withinSeconds: 300, serviceAccounts: 'refused' },
};

const SET_UP = 'Set up a second factor first: POST /api/auth/second-factor.';

/** What a session still lacks before it may be used for anything; `null` for nothing. */
export function lackOf(
  { isAdministrator, secondFactor }: Pick<Person, 'isAdministrator' | 'secondFactor'>,
  { secondFactorRequiredFor }: SignInPolicy,
): HttpProblem | null {
  if (secondFactor.isSetUp) {
    if (secondFactor.provenAtMs !== null) return null;
    return new HttpProblem('second_factor_required', 'Sign-in is not complete: send a code of your second factor to POST /api/auth/step-up.');
  }
  const isRequired = secondFactorRequiredFor === 'everyone' || (secondFactorRequiredFor === 'administrators' && isAdministrator);
  return isRequired ? new HttpProblem('second_factor_setup_required', `This service demands a second factor of you. ${SET_UP}`) : null;
}

/**
 * Whether `principal` may do what demands `action` now.
 * @throws HttpProblem `step_up_required` for a proof that is too old, `second_factor_setup_required` where there can be none yet,
 *   and `forbidden` for a service account
 */
export function demandStepUp(principal: Principal, action: StepUpAction, { stepUp }: SignInPolicy, nowMs: number): void {
  const isDemanded = action === 'policy' ? stepUp.actions.size > 0 : stepUp.actions.has(action);
  if (!isDemanded) return;
  if (principal.kind === 'service_account') {
    if (stepUp.serviceAccounts === 'allowed') return;
    throw new HttpProblem('forbidden', 'This demands a second factor, which a service account has not.');
  }
  const { isSetUp, provenAtMs } = principal.secondFactor;
  if (!isSetUp) throw new HttpProblem('second_factor_setup_required', `This demands a second factor. ${SET_UP}`);
  // A proof of the future is a clock that was set back, and proves nothing of now.
  const isFresh = provenAtMs !== null && provenAtMs <= nowMs + 1000 && nowMs - provenAtMs <= stepUp.withinSeconds * 1000;
  if (!isFresh) throw new HttpProblem('step_up_required', 'This demands a second factor that was proven just now: send a code to POST /api/auth/step-up, and try again.');
}
