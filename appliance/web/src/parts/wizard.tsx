import { useWizardContext, WizardFooter } from '@patternfly/react-core';

/** The ids of a wizard's buttons. */
export const wizardButtons = {
  nextButtonProps: { id: 'wizard-next' },
  backButtonProps: { id: 'wizard-back' },
  cancelButtonProps: { id: 'wizard-cancel' },
};

/** A footer whose next button also starts something. */
export function GateFooter(props: { text: string; disabled: boolean; act: () => void }) {
  const { activeStep, goToNextStep, goToPrevStep, close } = useWizardContext();
  return (
    <WizardFooter
      {...wizardButtons}
      activeStep={activeStep}
      nextButtonText={props.text}
      isNextDisabled={props.disabled}
      onBack={goToPrevStep}
      onClose={close}
      onNext={() => {
        props.act();
        return goToNextStep();
      }}
    />
  );
}
