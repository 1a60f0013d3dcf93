import { Button } from '@patternfly/react-core';
import { Component, type ReactNode } from 'react';
import { undError } from '../../../../protocol/errors.ts';
import { ErrorAlert } from '../parts/parts.tsx';

/** A defect in one page must not take the whole screen: it is shown as what it is. */
export class Guard extends Component<{ children: ReactNode }, { thrown?: unknown }> {
  override state: { thrown?: unknown } = {};
  static getDerivedStateFromError(thrown: unknown) {
    return { thrown };
  }
  override render() {
    if (this.state.thrown === undefined) return this.props.children;
    const { code, message, hint } = undError('UND_INTERNAL', {
      reason: this.state.thrown instanceof Error ? this.state.thrown.message : 'unknown',
    });
    return (
      <div className="und-alone">
        <ErrorAlert error={{ code, message, hint }} title="This page failed" />
        <Button onClick={() => location.reload()}>Reload</Button>
      </div>
    );
  }
}
